//! Any arrivals and departures, in any order, keep the scheduler's promises and the engine's.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use microgranite::engine::pages::Pages;
use microgranite::engine::scheduler::{Budget, Scheduler};
use microgranite::engine::{Engine, Generation, Settings, TokenEvent};
use microgranite::telemetry::Metrics;
use proptest::prelude::*;

use crate::checked_model::{CheckedModel, NAN_TOKEN, greedy};
use crate::harness::within;

const PAGES: usize = 12;

#[derive(Debug, Clone)]
enum Event {
    Arrive {
        prompt: usize,
        tokens: usize,
    },
    Step,
    /// The n-th of those in flight leaves.
    Leave(usize),
}

#[derive(Debug)]
struct Job {
    id: usize,
    prompt: usize,
    tokens: usize,
    generated: usize,
    rows_done: usize,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let arrive = (1..400_usize, 1..100_usize);
    let event = prop_oneof![
        2 => arrive.prop_map(|(prompt, tokens)| Event::Arrive { prompt, tokens }),
        6 => Just(Event::Step),
        1 => (0..20_usize).prop_map(Event::Leave),
    ];
    prop::collection::vec(event, 1..120)
}

fn budgets() -> impl Strategy<Value = Budget> {
    (1..6_usize, 0..100_usize, 1..40_usize).prop_map(|(max_batch, more, prompt_rows)| Budget {
        max_batch,
        step_tokens: max_batch + more,
        prompt_rows_while_decoding: prompt_rows,
    })
}

/// Runs one step and checks every promise about it; returns the ids that were admitted.
fn checked_step(scheduler: &mut Scheduler<Job>, budget: Budget) -> Vec<usize> {
    let before: HashSet<usize> = scheduler.running().iter().map(|r| r.job.id).collect();
    scheduler.admit();
    let mut plan = Vec::new();
    scheduler.plan(&mut plan);

    let running = scheduler.running();
    assert!(running.len() <= budget.max_batch);
    let mut pages = HashSet::new();
    for one in running {
        let all = Pages::needed(one.job.prompt + one.job.tokens);
        assert_eq!(one.pages().len(), all, "everything is reserved");
        assert!(one.pages().iter().all(|&page| pages.insert(page)));
    }
    assert_eq!(pages.len() + scheduler.pages_free(), PAGES);

    let rows: usize = plan.iter().map(|work| work.rows).sum();
    assert!(rows <= budget.step_tokens);
    let planned: HashSet<usize> = plan.iter().map(|work| work.index).collect();
    assert_eq!(planned.len(), plan.len(), "one span per generation");
    let decodes = |job: &Job| job.rows_done >= job.prompt;
    let mut prompt_rows = 0;
    for work in &plan {
        let job = &running[work.index].job;
        assert_eq!(work.start, job.rows_done, "spans follow each other");
        let end = work.start + work.rows;
        if decodes(job) {
            assert_eq!((work.rows, work.logit_rows), (1, 1));
        } else {
            assert!(end <= job.prompt);
            assert_eq!(work.logit_rows, usize::from(end == job.prompt));
            prompt_rows += work.rows;
        }
    }
    let anyone_decodes = running.iter().any(|one| decodes(&one.job));
    for (index, one) in running.iter().enumerate() {
        assert!(!decodes(&one.job) || planned.contains(&index), "{one:?}");
    }
    if anyone_decodes {
        assert!(prompt_rows <= budget.prompt_rows_while_decoding);
    }
    if running.iter().any(|one| !decodes(&one.job)) {
        assert!(prompt_rows > 0, "prompts move in every step");
    }

    let admitted = running.iter().map(|one| one.job.id);
    let admitted = admitted.filter(|id| !before.contains(id)).collect();
    for work in plan {
        let job = &mut scheduler.running_mut()[work.index].job;
        job.rows_done += work.rows;
        job.generated += work.logit_rows;
    }
    let held = |scheduler: &Scheduler<Job>| -> usize {
        let rows = scheduler.running().iter().map(|one| one.job.rows_done);
        rows.map(Pages::needed).sum()
    };
    assert_eq!(scheduler.pages_used(), held(scheduler));
    scheduler.remove_if(|job| job.generated == job.tokens);
    assert_eq!(scheduler.pages_used(), held(scheduler));
    admitted
}

proptest! {
    #[test]
    fn the_scheduler_keeps_its_promises(budget in budgets(), events in events()) {
        let mut scheduler = Scheduler::new(budget, PAGES);
        let mut in_flight: Vec<usize> = Vec::new();
        let mut admitted = Vec::new();
        let mut arrived = 0;
        for event in events {
            match event {
                Event::Arrive { prompt, tokens } => {
                    let job = Job { id: arrived, prompt, tokens, generated: 0, rows_done: 0 };
                    scheduler.arrive(job, prompt, tokens);
                    in_flight.push(arrived);
                    arrived += 1;
                }
                Event::Step => admitted.extend(checked_step(&mut scheduler, budget)),
                Event::Leave(n) => {
                    if !in_flight.is_empty() {
                        let id = in_flight.remove(n % in_flight.len());
                        scheduler.remove_if(|job| job.id == id);
                    }
                }
            }
        }
        // Whoever is still there finishes, and in the end all pages are free. Every step moves somebody.
        for _ in 0..100_000 {
            if scheduler.is_empty() {
                break;
            }
            admitted.extend(checked_step(&mut scheduler, budget));
        }
        prop_assert!(scheduler.is_empty());
        prop_assert_eq!(scheduler.pages_free(), PAGES);
        prop_assert!(admitted.is_sorted(), "nobody overtakes: {:?}", admitted);
    }
}

/// A generation and after how many tokens its client leaves, if it does.
fn generations() -> impl Strategy<Value = Vec<(Generation, Option<usize>)>> {
    let prompt = prop::collection::vec(0..NAN_TOKEN, 1..200);
    let leaves = prop::option::weighted(0.4, 0..30_usize);
    let one = (prompt, 1..60_usize, leaves).prop_map(|(prompt, max_tokens, leaves)| {
        let generation = Generation {
            prompt,
            max_tokens,
            ..Generation::default()
        };
        (generation, leaves)
    });
    prop::collection::vec(one, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whoever_stays_gets_all_its_tokens(budget in budgets(), generations in generations()) {
        let settings = Settings {
            max_batch: budget.max_batch,
            max_queue: 24,
            step_tokens: budget.step_tokens,
            prompt_rows_while_decoding: budget.prompt_rows_while_decoding,
        };
        let model = Box::new(CheckedModel::new(&settings, PAGES));
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
        let used = metrics.kv_cache_bytes.with_label_values(&["used"]);
        prop_assert_eq!(used.get(), 0);
        prop_assert_eq!(metrics.requests_running.get(), 0);
        prop_assert_eq!(metrics.requests_waiting.get(), 0);
    }
}
