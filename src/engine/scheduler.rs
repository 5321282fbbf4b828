//! Who runs in the next step, and within which budget.
//!
//! Pure: arrivals, lengths and departures go in, a plan comes out. There is no clock, channel or tensor here, so text
//! scripts (`tests/scheduler/*.txt`) can say what must happen.
//!
//! A generation waits, then runs; nothing is ever preempted, because all pages it can ever need are reserved when it is
//! admitted. While it runs it is first a *prompt*, cut into chunks, and then *decoding*, one row per step. One step mixes
//! chunks and decoding rows, so that one pass over the weights serves all of them.

use std::collections::VecDeque;

use super::pages::Pages;

/// What one step may hold.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Generations that run at once.
    pub max_batch: usize,
    /// Rows in a step; at least `max_batch`, so that every decoding generation gets its row.
    pub step_tokens: usize,
    /// Prompt rows in a step in which somebody decodes; at least one, so that prompts always move.
    pub prompt_rows_while_decoding: usize,
}

/// A run of rows of one generation in the planned step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Index into [`Scheduler::running`]; good until something is removed.
    pub index: usize,
    /// Position of the first row; everything before it is in the KV pages.
    pub start: usize,
    /// How many rows.
    pub rows: usize,
    /// Rows at the end whose logits are wanted: one where the step reaches the generation's last token, to choose the next.
    pub logit_rows: usize,
}

/// A generation that waits for a place.
#[derive(Debug)]
struct Waiting<T> {
    job: T,
    prompt_len: usize,
    max_len: usize,
}

/// A generation that holds a place in the batch.
#[derive(Debug)]
pub struct Running<T> {
    /// What the caller attached.
    pub job: T,
    /// Length of the prompt.
    prompt_len: usize,
    /// Positions whose keys and values are in the pages, the planned step included. A prefix cache would start this
    /// above zero.
    cached: usize,
    /// Pages for the prompt and all tokens that may follow.
    pages: Vec<u32>,
}

impl<T> Running<T> {
    /// The KV pages, in order.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    fn is_decoding(&self) -> bool {
        self.cached >= self.prompt_len
    }
}

/// Two queues in order of arrival. `T` is whatever the caller attaches to a generation; the scheduler never looks at it.
#[derive(Debug)]
pub struct Scheduler<T> {
    budget: Budget,
    pages: Pages,
    waiting: VecDeque<Waiting<T>>,
    running: Vec<Running<T>>,
}

impl<T> Scheduler<T> {
    /// A scheduler of nothing, over `page_count` free pages.
    pub fn new(budget: Budget, page_count: usize) -> Self {
        Self {
            budget,
            pages: Pages::new(page_count),
            waiting: VecDeque::new(),
            running: Vec::with_capacity(budget.max_batch),
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

    /// Gives places to those who wait, first come first served; returns how many were admitted.
    ///
    /// The first in the queue is never overtaken: a large generation would starve behind small ones.
    pub fn admit(&mut self) -> usize {
        let before = self.running.len();
        while self.running.len() < self.budget.max_batch
            && let Some(first) = self.waiting.front()
            && let Some(pages) = self.pages.take(Pages::needed(first.max_len))
            && let Some(first) = self.waiting.pop_front()
        {
            self.running.push(Running {
                job: first.job,
                prompt_len: first.prompt_len,
                cached: 0,
                pages,
            });
        }
        self.running.len() - before
    }

    /// Plans the next step into `plan`, and counts its rows as done.
    ///
    /// Decoding rows come first, since somebody is reading along; prompts share what is left, in order of arrival.
    pub fn plan(&mut self, plan: &mut Vec<Work>) {
        plan.clear();
        for (index, running) in self.running.iter_mut().enumerate() {
            if running.is_decoding() {
                plan.push(Work {
                    index,
                    start: running.cached,
                    rows: 1,
                    logit_rows: 1,
                });
            }
        }
        let mut prompt_rows = self.budget.step_tokens - plan.len();
        if !plan.is_empty() {
            prompt_rows = prompt_rows.min(self.budget.prompt_rows_while_decoding);
        }
        for (index, running) in self.running.iter_mut().enumerate() {
            let rows = prompt_rows.min(running.prompt_len.saturating_sub(running.cached));
            if rows > 0 {
                plan.push(Work {
                    index,
                    start: running.cached,
                    rows,
                    logit_rows: usize::from(running.cached + rows == running.prompt_len),
                });
                prompt_rows -= rows;
            }
        }
        for work in plan.iter() {
            self.running[work.index].cached += work.rows;
        }
    }

    /// Takes out every generation that `gone` names, waiting or running, and frees its pages; the others keep their order.
    pub fn remove_if(&mut self, mut gone: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut removed = Vec::new();
        for running in self.running.extract_if(.., |running| gone(&running.job)) {
            self.pages.give_back(running.pages);
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

    /// The generations that run, in order of arrival.
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

    /// Pages that hold at least one token.
    pub fn pages_used(&self) -> usize {
        let used = |running: &Running<T>| Pages::needed(running.cached);
        self.running.iter().map(used).sum()
    }

    /// Pages that nobody has reserved.
    pub fn pages_free(&self) -> usize {
        self.pages.free()
    }
}
