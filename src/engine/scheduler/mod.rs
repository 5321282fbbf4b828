//! Who runs in the next step, and within which budget.
//!
//! Pure: arrivals, lengths and departures go in, a plan comes out. There is no clock, channel or tensor here, so text
//! scripts (`tests/scheduler/*.txt`) can say what must happen.
//!
//! A generation waits, then runs. While it runs it is first a *prompt*, cut into chunks, and then *decoding*, one row per
//! step. One step mixes chunks and decoding rows, so that one pass over the weights serves all of them.
//!
//! **KV pages** are taken as tokens come. A generation is admitted when what it and the others are likely to need is free;
//! when that was too hopeful and the pages run out, the newest is *preempted*: it gives its pages back and waits at the
//! head of the queue, to compute again what the prefix cache has not kept. The oldest can take every page there is, and
//! no generation may be longer than that, so somebody always gets on.
//!
//! **Prompts** share the rows of a step: half of them go in order of admission, half to the prompt with the fewest rows
//! left. So a short prompt is not held up by long ones, and whoever came first always has half of the rows.
//!
//! With a prefix cache a prompt starts behind the full pages that somebody computed before; see [`super::pages`]. A prompt
//! that has not begun waits for a page that another computes in this step.

mod admit;
mod plan;

use std::collections::VecDeque;

use super::pages::Pages;

/// What one step may hold.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Generations that run at once.
    pub max_batch: usize,
    /// Rows in a step; at least `max_batch`, so that every decoding generation gets its row.
    pub step_tokens: usize,
}

/// What the scheduler reads of the job that a caller attaches to a generation.
pub trait Job {
    /// The prompt's tokens, then those generated so far, then the drafts.
    fn tokens(&self) -> &[u32];

    /// How many of the tokens, at their end, are drafts: guesses that the next step checks. None while it waits.
    fn drafts(&self) -> usize {
        0
    }

    /// Only generations with the same salt find each other's pages.
    fn salt(&self) -> u128 {
        0
    }

    /// Whether the logits of every row of the prompt are still wanted, not only of its last: such a prompt is computed
    /// from its first token on, whatever is cached.
    fn scores_prompt(&self) -> bool {
        false
    }
}

/// A run of rows of one generation in the planned step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Index into [`Scheduler::running`]; good until something is removed.
    pub index: usize,
    /// Position of the first row; everything before it is in the KV pages.
    pub start: usize,
    /// How many rows: a chunk of a prompt, or the last token and the drafts behind it.
    pub rows: usize,
    /// How many of the rows, at their end, are drafts.
    pub drafts: usize,
    /// Rows at the end whose logits are wanted: one where the step reaches the generation's last token, to choose the
    /// next, and one for each draft.
    pub logit_rows: usize,
}

/// A generation that waits for a slot in the batch.
#[derive(Debug)]
struct Waiting<T> {
    job: T,
    prompt_len: usize,
    max_len: usize,
}

/// A generation that holds a slot in the batch.
#[derive(Debug)]
pub struct Running<T> {
    /// What the caller attached.
    pub job: T,
    prompt_len: usize,
    max_len: usize,
    /// Positions that were known when it was admitted: the prompt, and after a preemption what had been generated.
    prefill_len: usize,
    /// Positions at the beginning that were found in the prefix cache; always less than `prefill_len`.
    reused: usize,
    /// Positions whose keys and values are in the pages.
    cached: usize,
    /// Rows that the planned step adds.
    planned: usize,
    /// Pages for what is cached and planned, and at times for a little more.
    pages: Vec<u32>,
    /// How many of them, from the first on, are published: others may hold them too, and nobody writes into them.
    published: usize,
}

impl<T> Running<T> {
    /// The KV pages, in order.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// How many tokens of what was known at its admission were found in the prefix cache.
    pub const fn reused(&self) -> usize {
        self.reused
    }

    const fn is_decoding(&self) -> bool {
        self.cached >= self.prefill_len
    }

    /// Rows to compute before the next token can be chosen; 0 once it decodes.
    const fn prefill_left(&self) -> usize {
        self.prefill_len.saturating_sub(self.cached)
    }
}

/// Tokens that a generation is taken to give before any has ended: a paragraph or two, as chats answer.
const FIRST_TYPICAL_TOKENS: f64 = 256.0;
/// Share of the newest answer in the running mean of their lengths: it follows about the last ten.
const NEWEST_SHARE: f64 = 0.1;

/// Two queues. `T` is whatever the caller attaches to a generation.
#[derive(Debug)]
pub struct Scheduler<T> {
    budget: Budget,
    pages: Pages,
    /// In order of arrival, those that were preempted before all others.
    waiting: VecDeque<Waiting<T>>,
    /// In order of admission.
    running: Vec<Running<T>>,
    /// Running mean of the tokens that generations gave.
    typical_tokens: f64,
    /// Generations that were preempted so far.
    preemptions: u64,
    /// Whether the odd row of the next step goes in order of admission.
    odd_row_in_order: bool,
    /// The prompts in order of admission and by their length, kept for their memory.
    prompts: [Vec<usize>; 2],
}

impl<T: Job> Scheduler<T> {
    /// A scheduler of nothing, over `pages` of which all are free.
    pub fn new(budget: Budget, pages: Pages) -> Self {
        Self {
            budget,
            pages,
            waiting: VecDeque::new(),
            running: Vec::with_capacity(2 * budget.max_batch),
            typical_tokens: FIRST_TYPICAL_TOKENS,
            preemptions: 0,
            odd_row_in_order: true,
            prompts: Default::default(),
        }
    }

    /// Puts a generation at the end of the queue. `prompt_len + max_tokens` fits the pages there are: one that does not
    /// would wait, and make everyone behind it wait, for ever.
    pub fn arrive(&mut self, job: T, prompt_len: usize, max_tokens: usize) {
        self.waiting.push_back(Waiting {
            job,
            prompt_len,
            max_len: prompt_len + max_tokens,
        });
    }

    /// Notes that the planned step has been run. `plan` says of each generation how many of its `rows` hold: all of them,
    /// less the drafts that were refused. What those left in the pages is written over before it is read.
    pub fn settle(&mut self, plan: &[Work]) {
        for work in plan {
            let running = &mut self.running[work.index];
            running.planned = 0;
            running.cached = work.start + work.rows;
            if !self.pages.publishes() {
                continue;
            }
            let full = running.job.tokens()[..running.cached].as_chunks().0;
            for (index, &tokens) in full.iter().enumerate().skip(running.published) {
                let salt = running.job.salt();
                self.pages.publish(&mut running.pages, index, tokens, salt);
                running.published += 1;
            }
        }
    }

    /// Takes out every generation that `gone` names, waiting or running, and frees its pages; the others keep their order.
    pub fn remove_if(&mut self, mut gone: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut removed = Vec::new();
        for running in self.running.extract_if(.., |running| gone(&running.job)) {
            self.pages.give_back(&running.pages);
            let tokens = known(&running.job) - running.prompt_len;
            // Whoever leaves before the first token says nothing about answers.
            if tokens > 0 {
                self.typical_tokens += NEWEST_SHARE * (tokens as f64 - self.typical_tokens);
            }
            removed.push(running.job);
        }
        let mut index = 0;
        while let Some(waiting) = self.waiting.get(index) {
            if gone(&waiting.job) {
                removed.extend(self.waiting.remove(index).map(|waiting| waiting.job));
            } else {
                index += 1;
            }
        }
        removed
    }

    /// The generations that run, in order of admission.
    pub fn running(&self) -> &[Running<T>] {
        &self.running
    }

    /// The same, to change what is attached.
    pub fn running_mut(&mut self) -> &mut [Running<T>] {
        &mut self.running
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits or runs.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// How many are past their prompt.
    pub fn decoding(&self) -> usize {
        let decoding = self.running.iter().filter(|running| running.is_decoding());
        decoding.count()
    }

    /// Pages that somebody holds and that hold at least one token, the planned step's included.
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

/// Tokens of a job that are certain: the prompt's and those generated.
fn known(job: &impl Job) -> usize {
    job.tokens().len() - job.drafts()
}

impl<T: Job> Running<T> {
    /// What was known when it was admitted.
    fn prefill(&self) -> &[u32] {
        &self.job.tokens()[..self.prefill_len]
    }

    /// Whether nothing of its prompt was computed, which could be found instead. A prompt that is scored is computed whole.
    fn awaits_its_first_step(&self) -> bool {
        !self.is_decoding() && self.cached == self.reused && !self.job.scores_prompt()
    }
}
