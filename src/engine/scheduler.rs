//! Who runs in the next step, and within which budget.
//!
//! Pure: arrivals, lengths and departures go in, a plan comes out. There is no clock, channel or tensor here, so text
//! scripts (`tests/scheduler/*.txt`) can say what must happen.
//!
//! A generation waits, then runs; nothing is ever preempted, because all pages it can ever need are reserved when it is
//! admitted. While it runs it is first a *prompt*, cut into chunks, and then *decoding*, one row per step. One step mixes
//! chunks and decoding rows, so that one pass over the weights serves all of them.
//!
//! With a prefix cache a prompt starts behind the full pages that somebody computed before; see [`super::pages`]. A prompt
//! that has not begun waits for a page that another is about to compute.

use std::collections::VecDeque;

use super::pages::Pages;
use crate::model::PAGE_TOKENS;

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
    /// The prompt's tokens, then those generated so far.
    fn tokens(&self) -> &[u32];

    /// Guesses at the tokens that follow, to be checked in the next step.
    fn drafts(&self) -> usize {
        0
    }

    /// Only generations with the same salt find each other's pages.
    fn salt(&self) -> u128 {
        0
    }

    /// Whether the logits of every row of the prompt are wanted, not only of its last: such a prompt is computed from
    /// its first token on, whatever is cached.
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
    /// Rows at the end whose logits are wanted: one where the step reaches the generation's last token, to choose the
    /// next, and one for each draft.
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
    prompt_len: usize,
    max_len: usize,
    /// Positions at the beginning that were found in the prefix cache; always less than the prompt.
    reused: usize,
    /// Positions whose keys and values are in the pages.
    cached: usize,
    /// Rows that the planned step adds.
    planned: usize,
    /// Pages for the prompt and all tokens that may follow.
    pages: Vec<u32>,
    /// How many of them, from the first on, are published: others may hold them too, and nobody writes into them.
    published: usize,
}

impl<T> Running<T> {
    /// The KV pages, in order.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// How many tokens of the prompt were found in the prefix cache.
    pub const fn reused(&self) -> usize {
        self.reused
    }

    const fn is_decoding(&self) -> bool {
        self.cached >= self.prompt_len
    }
}

/// Two queues in order of arrival. `T` is whatever the caller attaches to a generation.
#[derive(Debug)]
pub struct Scheduler<T> {
    budget: Budget,
    pages: Pages,
    waiting: VecDeque<Waiting<T>>,
    running: Vec<Running<T>>,
}

impl<T: Job> Scheduler<T> {
    /// A scheduler of nothing, over `pages` of which all are free.
    pub fn new(budget: Budget, pages: Pages) -> Self {
        Self {
            budget,
            pages,
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
            && let found = self.find(first)
            && let Some(pages) = self.pages.take(&found, Pages::needed(first.max_len))
            && let Some(first) = self.waiting.pop_front()
        {
            let reused = found.len() * PAGE_TOKENS;
            self.running.push(Running {
                job: first.job,
                prompt_len: first.prompt_len,
                max_len: first.max_len,
                reused,
                cached: reused,
                planned: 0,
                pages,
                published: found.len(),
            });
        }
        self.running.len() - before
    }

    /// Gives those who have not begun with their prompt what others have computed of it since they were admitted.
    fn share(&mut self) {
        for running in self
            .running
            .iter_mut()
            .filter(|one| one.awaits_its_first_step())
        {
            let found = self.pages.find(running.prompt(), running.job.salt());
            let (own, new) = (running.published, found.get(running.published..));
            self.pages
                .exchange(&mut running.pages[own..], new.unwrap_or_default());
            running.published = own.max(found.len());
            running.reused = running.published * PAGE_TOKENS;
            running.cached = running.reused;
        }
    }

    /// Whether the next page of a prompt that has not begun is being computed for a prompt before it, which makes it
    /// worth waiting for. That one gets its rows first, so nobody waits for ever.
    fn is_following(&self, index: usize) -> bool {
        let follower = &self.running[index];
        let end = follower.cached + PAGE_TOKENS;
        // The last token is computed by everyone, since somebody has to say what follows it.
        if !self.pages.publishes()
            || !follower.awaits_its_first_step()
            || end >= follower.prompt_len
        {
            return false;
        }
        let begins_alike = |other: &Running<T>| {
            !other.is_decoding()
                && other.published * PAGE_TOKENS < end
                && other.job.salt() == follower.job.salt()
                && other.prompt().starts_with(&follower.prompt()[..end])
        };
        self.running[..index].iter().any(begins_alike)
    }

    fn find(&self, waiting: &Waiting<T>) -> Vec<u32> {
        if waiting.job.scores_prompt() {
            return Vec::new();
        }
        let prompt = &waiting.job.tokens()[..waiting.prompt_len];
        self.pages.find(prompt, waiting.job.salt())
    }

    /// Plans the next step into `plan`; with nobody decoding the prompts have it all, else at most `prompt_rows` of it.
    ///
    /// Decoding rows come first, since somebody is reading along; prompts share what is left, in order of arrival, and
    /// get one row at least. Drafts are checked only in steps without prompts, whose rows are not spared for a guess.
    pub fn plan(&mut self, prompt_rows: usize, plan: &mut Vec<Work>) {
        plan.clear();
        self.share();
        let decoding = self.decoding();
        let mut left = self.budget.step_tokens - decoding;
        let mut drafts_left = if decoding == self.running.len() {
            left
        } else {
            0
        };
        for (index, running) in self.running.iter_mut().enumerate() {
            if running.is_decoding() {
                // The last token is never run, so a draft for it, or behind it, would be of no use.
                let most = (running.max_len - running.cached).saturating_sub(2);
                let drafts = running.job.drafts().min(most).min(drafts_left);
                drafts_left -= drafts;
                plan.push(running.work(index, 1 + drafts));
            }
        }
        if decoding > 0 {
            left = left.min(prompt_rows.max(1));
        }
        for index in 0..self.running.len() {
            let running = &self.running[index];
            let rows = left.min(running.prompt_len.saturating_sub(running.cached));
            if rows > 0 && !self.is_following(index) {
                plan.push(self.running[index].work(index, rows));
                left -= rows;
            }
        }
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

    /// The pages.
    pub const fn pages(&self) -> &Pages {
        &self.pages
    }
}

impl<T: Job> Running<T> {
    fn prompt(&self) -> &[u32] {
        &self.job.tokens()[..self.prompt_len]
    }

    /// Whether nothing of its prompt was computed, which could be found instead. A prompt that is scored is computed whole.
    fn awaits_its_first_step(&self) -> bool {
        self.cached == self.reused && !self.job.scores_prompt()
    }

    /// The next `rows` rows.
    fn work(&mut self, index: usize, rows: usize) -> Work {
        self.planned = rows;
        let end = self.cached + rows;
        let logit_rows = if self.is_decoding() || self.job.scores_prompt() {
            rows
        } else {
            usize::from(end == self.prompt_len)
        };
        Work {
            index,
            start: self.cached,
            rows,
            logit_rows,
        }
    }
}
