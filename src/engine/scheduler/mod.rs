//! Decides which generations run in the next step, and with how many rows.
//!
//! Pure: arrivals, lengths and departures go in, a plan comes out. There is no clock, channel or tensor here, so text
//! scripts (`tests/scheduler/*.txt`) can say what must happen.
//!
//! A generation waits, then runs. A running generation is first a *prompt* (prefill), computed in chunks, and then
//! *decodes*, one row per step. One step mixes chunks and decoding rows, so that one pass over the weights serves all
//! of them.
//!
//! **KV pages** are allocated as tokens come. A generation is admitted when enough pages are free for what it and the
//! running ones are likely to need. If that estimate was too low and the pages run out, the newest generation is
//! *preempted*: it returns its pages and waits at the head of the queue, and later recomputes what the prefix cache has
//! not kept. The oldest can take every page there is, and no generation may need more than that, so at least one always
//! makes progress.
//!
//! **Prompts** share the rows of a step: half of the rows go to prompts in order of admission, half to the prompt with
//! the fewest rows left. So short prompts are not held up by long ones, and the oldest prompt always gets half of the
//! rows.
//!
//! **Flows**, such as the clients of different API keys, get equal shares: of the places in the batch and the pages, in
//! whose order `flows` decides, and of the rows of each step, those that it decodes included. A flow that has less than its share does not
//! wait for one that has more: the newest generation of that one is preempted.
//!
//! A generation whose client has left too many tokens unread is *paused*: it returns its slot and its pages as if it were
//! preempted, and waits again once the client has read; see `pause`.
//!
//! With a prefix cache a prompt starts behind the full pages that were computed before; see [`super::pages`]. A prompt
//! that has not begun waits while another prompt computes its next page in this step.

mod admit;
mod flows;
mod pause;
mod plan;
mod running;
mod slots;

use std::collections::VecDeque;

use super::pages::Pages;
use super::request::Flow;
use flows::Flows;
pub use running::Running;
use running::{Waiting, known};
use slots::Slots;

/// What one step may hold.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Generations that run at once.
    pub max_batch: usize,
    /// Rows in a step; at least `max_batch`, so that every decoding generation gets its row.
    pub step_tokens: usize,
}

impl Budget {
    /// Generations that can run at once when every long prompt has lent its place in the batch to a short one.
    pub const fn max_running(&self) -> usize {
        2 * self.max_batch
    }
}

/// What the scheduler needs to know of the job that a caller attaches to a generation.
pub trait Job {
    /// The prompt's tokens, then those generated so far, then the drafts.
    fn tokens(&self) -> &[u32];

    /// How many of the last tokens are drafts, which the next step checks. None while it waits.
    fn drafts(&self) -> usize {
        0
    }

    /// Pages are shared only between generations with the same salt.
    fn salt(&self) -> u128 {
        0
    }

    /// Whose it is.
    fn flow(&self) -> Flow {
        Flow::SHARED
    }

    /// Among those of the same flow that wait, lower numbers are first.
    fn priority(&self) -> i64 {
        0
    }

    /// Whether its client has left so much unread that it makes no more for now.
    fn is_ahead(&self) -> bool {
        false
    }

    /// Whether the client of one that was paused has read enough for it to go on.
    fn may_go_on(&self) -> bool {
        true
    }

    /// Whether it is nobody's: it says nothing about the length of answers.
    fn is_background(&self) -> bool {
        false
    }

    /// Whether the logits of every row of the prompt are still needed, not only those of its last. Such a prompt is
    /// computed from its first token on, even if its pages are cached.
    fn scores_prompt(&self) -> bool {
        false
    }
}

/// Consecutive rows of one generation in the planned step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Index into [`Scheduler::running`]; valid until a generation is removed.
    pub index: usize,
    /// Position of the first row; everything before it is in the KV pages.
    pub start: usize,
    /// How many rows: a chunk of a prompt, or the last token and the drafts behind it.
    pub rows: usize,
    /// How many of the last rows are drafts.
    pub drafts: usize,
    /// How many of the last rows need logits: one where the step reaches the generation's last token, to choose the
    /// next, and one for each draft.
    pub logit_rows: usize,
}

/// What one flow has, for estimates of how long it will wait.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Whose.
    pub flow: Flow,
    /// Generations that wait for a place.
    pub waiting: usize,
    /// Tokens of their prompts.
    pub waiting_tokens: usize,
    /// Generations that have a place.
    pub running: usize,
    /// Tokens of their prompts that are not computed yet.
    pub prefill_tokens: usize,
}

impl Load {
    /// Of a flow that has nothing yet.
    pub const fn of(flow: Flow) -> Self {
        Self {
            flow,
            waiting: 0,
            waiting_tokens: 0,
            running: 0,
            prefill_tokens: 0,
        }
    }

    /// Tokens of prompts that are not computed yet.
    pub const fn backlog(&self) -> usize {
        self.waiting_tokens + self.prefill_tokens
    }
}

/// Assumed length of an answer before any has ended: a paragraph or two, as in chats.
const FIRST_TYPICAL_TOKENS: f64 = 256.0;
/// Weight of the newest answer in the running mean of their lengths: it averages about the last ten.
const NEWEST_SHARE: f64 = 0.1;

/// The waiting and the running generations. `T` is whatever the caller attaches to a generation.
#[derive(Debug)]
pub struct Scheduler<T> {
    budget: Budget,
    pages: Pages,
    slots: Slots,
    /// In order of arrival, preempted ones first; whose turn it is, `flows` decides.
    waiting: VecDeque<Waiting<T>>,
    /// In order of admission.
    running: Vec<Running<T>>,
    /// Those that neither run nor wait for a slot until their clients have read.
    paused: Vec<Waiting<T>>,
    /// Running mean of the tokens that a generation produces.
    typical_tokens: f64,
    /// Number of preemptions so far.
    preemptions: u64,
    /// Whether the next odd row goes to the prompts in order of admission.
    odd_row_in_order: bool,
    /// Whether the model keeps a state of each sequence, which holds only what is certain.
    keeps_states: bool,
    flows: Flows,
    /// How many of the first that wait were preempted while this step was prepared.
    gave_way: usize,
    /// Scratch: flows in the order of their turns.
    order: Vec<u64>,
    /// Scratch: the prompts in order of admission, and shortest first.
    prompts: [Vec<usize>; 2],
    /// Scratch: the flows of these prompts, and the rows that they decode in the planned step.
    prompt_flows: Vec<(Flow, f64)>,
    /// Counts the steps in which several flows had prompts, so that each of them is first in turn.
    turn: usize,
}

impl<T: Job> Scheduler<T> {
    /// A scheduler without generations, over `pages` that are all free. `keeps_states` says whether the model keeps a
    /// state of each sequence beside its pages.
    pub fn new(budget: Budget, pages: Pages, keeps_states: bool) -> Self {
        Self {
            keeps_states,
            budget,
            pages,
            slots: Slots::new(budget.max_running()),
            waiting: VecDeque::new(),
            running: Vec::with_capacity(budget.max_running()),
            paused: Vec::new(),
            typical_tokens: FIRST_TYPICAL_TOKENS,
            preemptions: 0,
            odd_row_in_order: true,
            flows: Flows::default(),
            gave_way: 0,
            order: Vec::new(),
            prompts: Default::default(),
            prompt_flows: Vec::new(),
            turn: 0,
        }
    }

    /// Puts a generation at the end of the queue. `prompt_len + max_tokens` must fit the pages there are: one that does
    /// not fit would wait for ever, and everything behind it too.
    pub fn arrive(&mut self, job: T, prompt_len: usize, max_tokens: usize) {
        self.flows.arrive(job.flow());
        self.waiting.push_back(Waiting {
            job,
            prompt_len,
            max_len: prompt_len + max_tokens,
            was_preempted: false,
        });
    }

    /// Records that the planned step has been computed. For each generation, `plan` says how many of its `rows` are
    /// valid: all but the drafts that were refused. What those left in the pages is overwritten before it is read.
    pub fn settle(&mut self, plan: &[Work]) {
        for work in plan {
            let running = &mut self.running[work.index];
            let certain = running.planned - work.drafts;
            running.planned = 0;
            if running.is_decoding() {
                self.flows.charge(running.job.flow(), work.rows);
            }
            // A state does not hold the drafts that turned out right: they are run again as what they are.
            running.cached = work.start
                + if self.keeps_states {
                    certain
                } else {
                    work.rows
                };
            if !self.pages.publishes() {
                continue;
            }
            let full = running.job.tokens()[..running.cached].as_chunks().0;
            for (index, &tokens) in full.iter().enumerate().skip(running.published) {
                let salt = running.job.salt();
                self.pages.publish(&mut running.pages, index, tokens, salt);
                running.published += 1;
            }
            running.keep_snapshots(&mut self.pages, work.start);
        }
    }

    /// Forgets the planned step, which was not computed to its end. What it has written is overwritten before it is read, or
    /// its generations are removed.
    pub fn give_up(&mut self, plan: &[Work]) {
        for work in plan {
            let running = &mut self.running[work.index];
            running.planned = 0;
            for save in running.saves.drain(..) {
                if let Some(snapshots) = self.pages.snapshots_mut() {
                    snapshots.forget(save.snapshot);
                }
            }
        }
    }

    /// Removes every generation for which `gone` is true, in any state, and frees its pages; the others keep
    /// their order.
    pub fn remove_if(&mut self, mut gone: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut removed = Vec::new();
        for mut running in self.running.extract_if(.., |running| gone(&running.job)) {
            running.drop_snapshots(&mut self.pages);
            self.pages.give_back(&running.pages);
            self.slots.give_back(running.slot);
            let tokens = known(&running.job) - running.prompt_len;
            // A generation without a token says nothing about the length of answers.
            if tokens > 0 && !running.job.is_background() {
                self.typical_tokens += NEWEST_SHARE * (tokens as f64 - self.typical_tokens);
            }
            self.flows.leave(running.job.flow(), true);
            removed.push(running.job);
        }
        let paused = self.paused.extract_if(.., |paused| gone(&paused.job));
        removed.extend(paused.map(|paused| paused.job));
        let mut index = 0;
        while let Some(waiting) = self.waiting.get(index) {
            if gone(&waiting.job) {
                if let Some(waiting) = self.waiting.remove(index) {
                    self.flows.leave(waiting.job.flow(), false);
                    removed.push(waiting.job);
                }
            } else {
                index += 1;
            }
        }
        removed
    }

    /// The running generations, in order of admission.
    pub fn running(&self) -> &[Running<T>] {
        &self.running
    }

    /// The same, mutable.
    pub fn running_mut(&mut self) -> &mut [Running<T>] {
        &mut self.running
    }

    /// How many generations wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How many generations are paused.
    pub const fn paused(&self) -> usize {
        self.paused.len()
    }

    /// What each flow has, in place of what is in `loads`.
    pub fn loads(&self, loads: &mut Vec<Load>) {
        loads.clear();
        let mut add = |job: &T, waiting_tokens: Option<usize>, prefill_tokens: usize| {
            let flow = job.flow();
            let at = match loads.iter().position(|load| load.flow.id == flow.id) {
                Some(at) => at,
                None => {
                    loads.push(Load::of(flow));
                    loads.len() - 1
                }
            };
            let load = &mut loads[at];
            match waiting_tokens {
                Some(tokens) => {
                    load.waiting += 1;
                    load.waiting_tokens += tokens;
                }
                None => {
                    load.running += 1;
                    load.prefill_tokens += prefill_tokens;
                }
            }
        };
        for waiting in &self.waiting {
            add(&waiting.job, Some(known(&waiting.job)), 0);
        }
        for running in &self.running {
            add(&running.job, None, running.prefill_left());
        }
    }

    /// Whether there is no generation.
    pub fn is_empty(&self) -> bool {
        self.is_at_rest() && self.paused.is_empty()
    }

    /// Whether no generation runs or waits for a slot, so that a step would have no work.
    pub fn is_at_rest(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Whether prompts would have taken more rows of the planned step than they got.
    pub fn wants_rows(&self) -> bool {
        let mut running = self.running.iter();
        running.any(|one| !one.is_decoding() && one.prefill_left() > one.planned)
    }

    /// Rows that decoding generations need in the next step: one each, and more for one whose drafts have to be run
    /// again.
    pub fn decoding_rows(&self) -> usize {
        let decoding = self.running.iter().filter(|running| running.is_decoding());
        decoding.map(|one| one.next_end() - one.cached).sum()
    }

    /// How many generations are decoding.
    pub fn decoding(&self) -> usize {
        let decoding = self.running.iter().filter(|running| running.is_decoding());
        decoding.count()
    }

    /// Pages that are held and contain at least one token, including those of the planned step.
    pub fn pages_used(&self) -> usize {
        let own = |running: &Running<T>| {
            Pages::needed(running.cached + running.planned) - running.published
        };
        self.pages.shared() + self.running.iter().map(own).sum::<usize>()
    }

    /// How many generations were preempted so far.
    pub const fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// The pages.
    pub const fn pages(&self) -> &Pages {
        &self.pages
    }
}
