//! Properties: whatever arrives and leaves, in any order, the scheduler and the engine keep their promises.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use microgranite::engine::pages::Pages;
use microgranite::engine::scheduler::{Budget, Scheduler};
use microgranite::engine::{Engine, Flow, Generation, PromptRows, Settings, TokenEvent};
use microgranite::model::PAGE_TOKENS;
use microgranite::telemetry::Metrics;
use proptest::prelude::*;

use crate::checked_model::{CheckedModel, NAN_TOKEN, greedy};
use crate::harness::{kv_bytes, within};

const PAGES: usize = 12;

#[derive(Debug, Clone)]
enum Event {
    Arrive {
        /// The number of its text: several generations may share a beginning.
        text: u32,
        prompt: usize,
        tokens: usize,
        /// Whose it is.
        flow: u64,
    },
    /// Every decoding generation has `drafts` drafts, of which the first `right` are right.
    Step { drafts: usize, right: usize },
    /// The n-th generation in flight is cancelled.
    Leave(usize),
}

#[derive(Debug)]
struct Job {
    id: usize,
    /// The prompt, all tokens that will follow it, and some more, for drafts past the end.
    text: Vec<u32>,
    prompt: usize,
    tokens: usize,
    generated: usize,
    /// Number of tokens known at its last admission.
    prefill: usize,
    rows_done: usize,
    drafts: usize,
    /// Where it was admitted to last.
    slot: u32,
    flow: u64,
}

/// Drafts per step at most.
const MOST_DRAFTS: usize = 9;

impl microgranite::engine::scheduler::Job for Job {
    fn tokens(&self) -> &[u32] {
        &self.text[..self.prompt + self.generated + self.drafts]
    }

    fn drafts(&self) -> usize {
        self.drafts
    }

    fn flow(&self) -> Flow {
        flow(self.flow)
    }
}

/// A flow whose weight is its number and one.
fn flow(id: u64) -> Flow {
    Flow {
        id,
        weight: 1.0 + id as f64,
    }
}

impl Job {
    fn decodes(&self) -> bool {
        self.rows_done >= self.prefill
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let arrive = (0..3_u32, 1..400_usize, 1..100_usize, 0..3_u64);
    let event = prop_oneof![
        2 => arrive.prop_map(|(text, prompt, tokens, flow)| Event::Arrive { text, prompt, tokens, flow }),
        6 => (0..MOST_DRAFTS, 0..MOST_DRAFTS).prop_map(|(drafts, right)| Event::Step { drafts, right }),
        1 => (0..20_usize).prop_map(Event::Leave),
    ];
    prop::collection::vec(event, 1..120)
}

fn budgets() -> impl Strategy<Value = Budget> {
    (1..6_usize, 0..100_usize).prop_map(|(max_batch, more)| Budget {
        max_batch,
        step_tokens: max_batch + more,
    })
}

/// Checks which generation holds which pages.
fn check_pages(scheduler: &Scheduler<Job>) {
    let mut held: HashMap<u32, (usize, &[u32])> = HashMap::new();
    let mut used: HashSet<u32> = HashSet::new();
    for one in scheduler.running() {
        let job = &one.job;
        let range = Pages::needed(job.rows_done)..=Pages::needed(job.prompt + job.tokens);
        assert!(range.contains(&one.pages().len()), "{one:?}");
        used.extend(&one.pages()[..Pages::needed(job.rows_done)]);
        for (index, &page) in one.pages().iter().enumerate() {
            let end = (index + 1) * PAGE_TOKENS;
            let text = &job.text[..end.min(job.text.len())];
            if let Some(other) = held.insert(page, (job.rows_done, text)) {
                assert_eq!(other.1, text, "page {page} is shared by two texts");
                let rows = other.0.min(job.rows_done);
                assert!(end <= rows, "page {page} is shared before it is full");
            }
        }
    }
    assert_eq!(held.len() + scheduler.pages().free(), PAGES);
    assert_eq!(scheduler.pages_used(), used.len());
}

/// Checks that each of those who run has a slot of its own, the one that it was admitted to.
fn check_slots(scheduler: &Scheduler<Job>, budget: Budget) {
    let mut taken = HashSet::new();
    for one in scheduler.running() {
        assert_eq!(one.slot(), one.job.slot, "a slot is kept");
        assert!((one.slot() as usize) < budget.max_running());
        assert!(taken.insert(one.slot()), "a slot is one sequence's");
    }
}

/// Runs one step and checks every promise about it; returns the generations that were admitted for the first time, and
/// whether their prompts are longer than a step.
fn checked_step(
    scheduler: &mut Scheduler<Job>,
    budget: Budget,
    prompt_rows: usize,
    (drafts, right): (usize, usize),
) -> Vec<(bool, u64, usize)> {
    let before: HashSet<usize> = scheduler.running().iter().map(|r| r.job.id).collect();
    scheduler.admit();
    let mut admitted = Vec::new();
    for one in scheduler.running_mut() {
        let (reused, slot) = (one.reused(), one.slot());
        if !before.contains(&one.job.id) {
            let job = &mut one.job;
            if job.prefill == 0 {
                admitted.push((job.prompt > budget.step_tokens, job.flow, job.id));
            }
            job.prefill = job.prompt + job.generated;
            assert!(reused.is_multiple_of(PAGE_TOKENS) && reused < job.prefill);
            job.rows_done = reused;
            job.slot = slot;
        } else if reused > one.job.rows_done {
            // A prompt that had not begun got pages that others computed meanwhile.
            one.job.rows_done = reused;
        }
    }
    check_pages(scheduler);
    check_slots(scheduler, budget);
    for one in scheduler.running_mut() {
        one.job.drafts = drafts;
    }
    let mut plan = Vec::new();
    scheduler.plan(prompt_rows, usize::MAX, &mut plan);

    let running = scheduler.running();
    assert!(running.len() <= 2 * budget.max_batch);
    let decoding = running.iter().filter(|one| one.job.decodes()).count();
    assert!(decoding <= budget.max_batch);
    let rows: usize = plan.iter().map(|work| work.rows).sum();
    assert!(rows <= budget.step_tokens);
    let planned: HashSet<usize> = plan.iter().map(|work| work.index).collect();
    assert_eq!(planned.len(), plan.len(), "one span per generation");
    let any_prompt = decoding < running.len();
    let mut rows_of_prompts = 0;
    for work in &plan {
        let job = &running[work.index].job;
        assert_eq!(work.start, job.rows_done, "spans follow each other");
        let end = work.start + work.rows;
        if job.decodes() {
            assert_eq!(work.rows, work.logit_rows);
            let most = if any_prompt { 1 } else { 1 + drafts };
            assert!((1..=most).contains(&work.rows));
            assert_eq!(work.drafts, work.rows - 1);
            let whole = job.prompt + job.tokens;
            assert!(end < whole, "the last token is never run");
        } else {
            assert!(end <= job.prefill);
            assert_eq!(work.logit_rows, usize::from(end == job.prefill));
            assert_eq!(work.drafts, 0);
            rows_of_prompts += work.rows;
        }
    }
    for (index, one) in running.iter().enumerate() {
        assert!(!one.job.decodes() || planned.contains(&index), "{one:?}");
    }
    if decoding > 0 {
        let prompts = running.iter().filter(|one| !one.job.decodes());
        let flows: HashSet<u64> = prompts.map(|one| one.job.flow).collect();
        assert!(rows_of_prompts <= prompt_rows.max(flows.len()));
    }
    if any_prompt && decoding < budget.max_batch {
        assert!(rows_of_prompts > 0, "prompts move in every step");
    }

    for work in &mut plan {
        let job = &mut scheduler.running_mut()[work.index].job;
        if job.decodes() {
            work.rows = work.rows.min(1 + right);
            job.generated += work.rows;
        } else {
            job.generated += work.logit_rows;
        }
        job.rows_done += work.rows;
    }
    for one in scheduler.running_mut() {
        one.job.drafts = 0;
    }
    scheduler.settle(&plan);
    check_pages(scheduler);
    scheduler.remove_if(|job| job.generated == job.tokens);
    check_pages(scheduler);
    admitted
}

proptest! {
    #[test]
    fn the_scheduler_keeps_its_promises(
        budget in budgets(), prompt_rows in 0..40_usize, prefix_cache: bool, events in events(),
    ) {
        let mut scheduler = Scheduler::new(budget, Pages::new(PAGES, prefix_cache, None), false);
        let mut in_flight: Vec<usize> = Vec::new();
        let mut admitted = Vec::new();
        let mut arrived = 0;
        for event in events {
            match event {
                Event::Arrive { text, prompt, tokens, flow } => {
                    // The texts differ only from some page on, so they share some beginnings.
                    let length = prompt + tokens + MOST_DRAFTS;
                    let text = (0..length as u32).map(|at| at / (100 + 50 * text)).collect();
                    let job = Job {
                        id: arrived, text, prompt, tokens,
                        generated: 0, prefill: 0, rows_done: 0, drafts: 0, slot: 0, flow,
                    };
                    scheduler.arrive(job, prompt, tokens);
                    in_flight.push(arrived);
                    arrived += 1;
                }
                Event::Step { drafts, right } => {
                    let drafts = (drafts, right);
                    admitted.extend(checked_step(&mut scheduler, budget, prompt_rows, drafts));
                }
                Event::Leave(n) => {
                    if !in_flight.is_empty() {
                        let id = in_flight.remove(n % in_flight.len());
                        scheduler.remove_if(|job| job.id == id);
                    }
                }
            }
        }
        // The remaining generations finish, and in the end all pages are free. Every step advances at least one.
        for _ in 0..100_000 {
            if scheduler.is_empty() {
                break;
            }
            admitted.extend(checked_step(&mut scheduler, budget, prompt_rows, (0, 0)));
        }
        prop_assert!(scheduler.is_empty());
        prop_assert_eq!(scheduler.pages().free(), PAGES);
        for (long, flow) in [false, true].into_iter().flat_map(|long| [(long, 0), (long, 1), (long, 2)]) {
            let alike = admitted.iter().filter(|one| (one.0, one.1) == (long, flow));
            prop_assert!(alike.is_sorted(), "nobody overtakes its like: {:?}", admitted);
        }
    }
}

/// Generations, each with the number of tokens after which its client disconnects, if it does.
fn generations() -> impl Strategy<Value = Vec<(Generation, Option<usize>)>> {
    // Some share a beginning of a page or two, and some repeat themselves.
    let alike = (
        prop::sample::select(vec![0_usize, 64, 100, 128, 192]),
        1..5_u32,
    );
    let prompt = (alike, prop::collection::vec(0..NAN_TOKEN, 1..100));
    let prompt = prompt.prop_map(|((alike, period), own)| {
        let alike = (0..alike as u32).map(|at| at % (5 * period));
        alike.chain(own).collect::<Vec<u32>>()
    });
    let leaves = prop::option::weighted(0.4, 0..30_usize);
    let whose = (0..3_u64, -1..2_i64);
    let one = (prompt, 1..60_usize, leaves, whose);
    let one = one.prop_map(|(prompt, max_tokens, leaves, (id, priority))| {
        let generation = Generation {
            prompt,
            max_tokens,
            flow: flow(id),
            priority,
            ..Generation::default()
        };
        (generation, leaves)
    });
    prop::collection::vec(one, 1..24)
}

fn prompt_rows() -> impl Strategy<Value = PromptRows> {
    prop_oneof![
        (1..40_usize).prop_map(PromptRows::Fixed),
        (1.0..5.0_f64).prop_map(PromptRows::Slowdown),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whoever_stays_gets_all_its_tokens(
        budget in budgets(), prompt_rows in prompt_rows(), prefix_cache: bool,
        speculation in 0..6_usize, snapshots in prop::option::of(0..5_usize), generations in generations(),
        max_unread_bytes in prop::sample::select(vec![0, usize::MAX]),
    ) {
        let settings = Settings {
            max_batch: budget.max_batch,
            // Each of three clients leaves room for the others.
            max_queue: 100,
            max_queue_tokens: 100_000,
            target_ttft: None,
            step_tokens: budget.step_tokens,
            prompt_rows,
            prefix_cache,
            speculation,
            max_unread_bytes,
        };
        let model = Box::new(match snapshots {
            Some(count) => CheckedModel::recurrent(&settings, PAGES, count),
            None => CheckedModel::new(&settings, PAGES),
        });
        let metrics = Arc::new(Metrics::new());
        let engine = Engine::start(model, settings, Arc::clone(&metrics)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let answers = runtime.block_on(async {
            let mut clients = HashMap::new();
            for (id, (generation, leaves)) in generations.iter().cloned().enumerate() {
                let mut stream = engine.submit(vec![generation]).unwrap().remove(0);
                clients.insert(id, tokio::spawn(async move {
                    let mut tokens = Vec::new();
                    while leaves.is_none_or(|count| tokens.len() < count) {
                        match within(stream.next()).await {
                            Some(TokenEvent::Token(token)) => tokens.push(token),
                            Some(TokenEvent::Finished(_)) => break,
                            other => panic!("{other:?}"),
                        }
                    }
                    tokens
                }));
            }
            let mut answers = HashMap::new();
            for (id, client) in clients {
                answers.insert(id, client.await.unwrap());
            }
            engine.drain();
            within(engine.stopped()).await;
            answers
        });
        for (id, (generation, leaves)) in generations.iter().enumerate() {
            let mut expected = greedy(&generation.prompt, generation.max_tokens);
            expected.truncate(leaves.unwrap_or(usize::MAX));
            prop_assert_eq!(&answers[&id], &expected);
        }
        prop_assert_eq!(kv_bytes(&metrics, "used"), 0);
        prop_assert_eq!(metrics.requests_running.get(), 0);
        prop_assert_eq!(metrics.requests_waiting.get(), 0);
    }
}
