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

    /// Prepares a step: makes sure that everyone who runs can go on, preempting the newest where pages are short, and
    /// gives slots to those who wait. Returns how many were admitted.
    ///
    /// First come first served, with one exception: while long prompts hold the slots, prompts that fit one step borrow
    /// them, see `next_to_admit`.
    pub fn admit(&mut self) -> usize {
        self.share();
        self.make_room();
        let before = self.running.len();
        while let Some(index) = self.next_to_admit()
            && let Some(waiting) = self.waiting.get(index)
            && let found = self.find(waiting)
            && self.is_likely_to_fit(waiting, &found)
            // One page more than was found: the others are taken when there is something to put into them.
            && let Some(mut pages) = self.pages.take(&found, found.len() + 1)
            && let Some(waiting) = self.waiting.remove(index)
        {
            let reused = found.len() * PAGE_TOKENS;
            // Room for all that may come, so that no later step has to make it.
            pages.reserve_exact(Pages::needed(waiting.max_len).saturating_sub(pages.len()));
            self.running.push(Running {
                prefill_len: known(&waiting.job),
                job: waiting.job,
                prompt_len: waiting.prompt_len,
                max_len: waiting.max_len,
                reused,
                cached: reused,
                planned: 0,
                pages,
                published: found.len(),
            });
        }
        self.running.len() - before
    }

    /// Which of those who wait is next to get a slot, if there is one for it.
    ///
    /// A prompt that takes more than a step lends its slot to one that takes no more than a step, since it will not need
    /// the slot for a while: what `max_batch` bounds is how many decode at once. Should a lender be done before whoever
    /// borrowed, it waits for a slot with its last row.
    fn next_to_admit(&self) -> Option<usize> {
        if self.running.len() < self.budget.max_batch {
            return (!self.waiting.is_empty()).then_some(0);
        }
        let step = self.budget.step_tokens;
        let running = self.running.iter();
        let lenders = running.filter(|one| one.prefill_left() > step).count();
        if self.running.len() >= self.budget.max_batch + lenders {
            return None;
        }
        let fits_a_step = |waiting: &Waiting<T>| known(&waiting.job) <= step;
        self.waiting.iter().position(fits_a_step)
    }

    /// Whether the pages suffice for `waiting`, of which `found` are in the cache, and for everybody who runs, if all
    /// become as long as is usual here.
    fn is_likely_to_fit(&self, waiting: &Waiting<T>, found: &[u32]) -> bool {
        // Then all pages are free, and no generation is longer than all of them.
        if self.running.is_empty() {
            return true;
        }
        let own = self.likely_pages(waiting.prompt_len, known(&waiting.job), waiting.max_len);
        let others = self.running.iter().map(|one| {
            let at = one.prefill_len.max(one.cached);
            let all = self.likely_pages(one.prompt_len, at, one.max_len);
            all.saturating_sub(one.pages.len())
        });
        self.pages.cost(found, own) + others.sum::<usize>() <= self.pages.free()
    }

    /// Pages that a generation is likely to need in the end, when it has come to position `at`: for an answer of usual
    /// length, and for a page more where it is longer already.
    fn likely_pages(&self, prompt_len: usize, at: usize, max_len: usize) -> usize {
        let usual = prompt_len + self.typical_tokens as usize;
        Pages::needed(usual.max(at + PAGE_TOKENS).min(max_len))
    }

    /// Gives everyone who runs a page for its next row. When there is none left the newest has to go, until there is.
    fn make_room(&mut self) {
        let mut index = 0;
        while let Some(cached) = self.running.get(index).map(|running| running.cached) {
            if self.cover(index, cached + 1) > cached {
                index += 1;
            } else if let Some(newest) = self.running.pop() {
                self.pages.give_back(&newest.pages);
                self.preemptions += 1;
                self.waiting.push_front(Waiting {
                    job: newest.job,
                    prompt_len: newest.prompt_len,
                    max_len: newest.max_len,
                });
            }
        }
    }

    /// Takes pages for the first `end` positions of a generation, as far as there are any; returns how many of the
    /// positions they hold.
    fn cover(&mut self, index: usize, end: usize) -> usize {
        let pages = &mut self.running[index].pages;
        let missing = Pages::needed(end).saturating_sub(pages.len());
        if missing > 0 {
            let some = missing.min(self.pages.free());
            self.pages.extend(pages, some);
        }
        end.min(pages.len() * PAGE_TOKENS)
    }

    /// Gives those who have not begun with their prompt what others have computed of it since they were admitted.
    fn share(&mut self) {
        for running in self
            .running
            .iter_mut()
            .filter(|one| one.awaits_its_first_step())
        {
            let found = self.pages.find(running.prefill(), running.job.salt());
            if let Some(new @ [_, ..]) = found.get(running.published..) {
                self.pages.give_back(&running.pages[running.published..]);
                running.pages.truncate(running.published);
                self.pages.share(new);
                running.pages.extend(new);
                running.published = found.len();
                running.reused = running.published * PAGE_TOKENS;
                running.cached = running.reused;
            }
        }
    }

    /// Whether the next page of a prompt that has not begun is being computed for another in this step, which makes it
    /// worth waiting for.
    fn is_following(&self, index: usize) -> bool {
        let follower = &self.running[index];
        let end = follower.cached + PAGE_TOKENS;
        // The last token is computed by everyone, since somebody has to say what follows it.
        if !self.pages.publishes()
            || follower.planned > 0
            || !follower.awaits_its_first_step()
            || end >= follower.prefill_len
        {
            return false;
        }
        let begins_alike = |other: &Running<T>| {
            other.planned > 0
                && !other.is_decoding()
                && other.published * PAGE_TOKENS < end
                && other.job.salt() == follower.job.salt()
                && other.prefill().starts_with(&follower.prefill()[..end])
        };
        self.running.iter().any(begins_alike)
    }

    fn find(&self, waiting: &Waiting<T>) -> Vec<u32> {
        if waiting.job.scores_prompt() {
            return Vec::new();
        }
        let known = &waiting.job.tokens()[..known(&waiting.job)];
        self.pages.find(known, waiting.job.salt())
    }

    /// Plans the next step into `plan`, after [`Scheduler::admit`]; with nobody decoding the prompts have it all, else at
    /// most `prompt_rows` of it, and one row at least.
    ///
    /// Decoding rows come first, since somebody is reading along. Drafts are checked only in steps without prompts, whose
    /// rows are not spared for a guess.
    pub fn plan(&mut self, prompt_rows: usize, plan: &mut Vec<Work>) {
        plan.clear();
        let decoding = self.decoding();
        let mut left = self.budget.step_tokens - decoding;
        let mut drafts_left = if decoding == self.running.len() {
            left
        } else {
            0
        };
        for index in 0..self.running.len() {
            let running = &self.running[index];
            if running.is_decoding() {
                let cached = running.cached;
                // The last token is never run, so a draft for it, or behind it, would be of no use.
                let most = (running.max_len - cached).saturating_sub(2);
                let drafts = running.job.drafts().min(most).min(drafts_left);
                let rows = self.cover(index, cached + 1 + drafts) - cached;
                drafts_left -= rows - 1;
                plan.push(self.running[index].decode(index, rows));
            }
        }
        if decoding > 0 {
            left = left.min(prompt_rows.max(1));
        }
        self.plan_prompts(left, self.budget.max_batch - decoding, plan);
    }

    /// Divides `rows` rows between the prompts, of which at most `slots` may come to their end and begin to decode.
    fn plan_prompts(&mut self, rows: usize, mut slots: usize, plan: &mut Vec<Work>) {
        let is_prompt = |&index: &usize| !self.running[index].is_decoding();
        let in_order: Vec<usize> = (0..self.running.len()).filter(is_prompt).collect();
        if in_order.is_empty() {
            return;
        }
        let mut shortest_first = in_order.clone();
        // By powers of two, within which the order of admission holds: prompts of about the same length gain nothing by
        // going on side by side.
        shortest_first.sort_by_key(|&index| self.running[index].prefill_left().ilog2());
        let half = if self.odd_row_in_order {
            rows.div_ceil(2)
        } else {
            rows / 2
        };
        self.odd_row_in_order ^= !rows.is_multiple_of(2);
        let shares = [
            (half, &in_order),
            (rows - half, &shortest_first),
            // What the shortest left over.
            (0, &in_order),
        ];
        let mut left = 0;
        for (share, prompts) in shares {
            left += share;
            for &index in prompts {
                if left > 0 && !self.is_following(index) {
                    left -= self.add_rows(index, left, &mut slots);
                }
            }
        }
        let prompts = in_order.into_iter();
        let prompts = prompts.filter(|&index| self.running[index].planned > 0);
        plan.extend(prompts.map(|index| self.running[index].prefill_work(index)));
    }

    /// Adds up to `rows` rows to what is planned of a prompt; returns how many.
    fn add_rows(&mut self, index: usize, rows: usize, slots: &mut usize) -> usize {
        let running = &self.running[index];
        let (start, planned) = (running.cached, running.planned);
        let left = running.prefill_left() - planned;
        let mut rows = rows.min(left);
        if rows > 0 && rows == left && *slots == 0 {
            rows -= 1;
        }
        let end = start + planned + rows;
        let rows = self.cover(index, end).saturating_sub(start + planned);
        *slots -= usize::from(rows > 0 && rows == left);
        self.running[index].planned += rows;
        rows
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

    /// The last token and the drafts behind it, `rows` rows in all.
    fn decode(&mut self, index: usize, rows: usize) -> Work {
        self.planned = rows;
        Work {
            index,
            start: self.cached,
            rows,
            drafts: rows - 1,
            logit_rows: rows,
        }
    }

    /// The planned chunk of a prompt.
    fn prefill_work(&self, index: usize) -> Work {
        let (start, rows) = (self.cached, self.planned);
        let logit_rows = if self.job.scores_prompt() {
            rows
        } else {
            usize::from(start + rows == self.prefill_len)
        };
        Work {
            index,
            start,
            rows,
            drafts: 0,
            logit_rows,
        }
    }
}
