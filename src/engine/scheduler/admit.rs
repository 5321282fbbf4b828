//! Gives slots and KV pages to waiting generations, and takes them back by preemption.

use super::{Job, Running, Scheduler, Waiting, known};
use crate::engine::pages::{Found, Pages};
use crate::model::PAGE_TOKENS;

impl<T: Job> Scheduler<T> {
    /// Prepares a step: makes sure that every running generation has a page for its next row, preempting the newest
    /// where pages are short, and gives free slots to waiting generations. Returns how many were admitted.
    ///
    /// Admission is first come, first served, with one exception: while long prompts hold the slots, prompts that fit
    /// in one step may borrow a slot; see `next_to_admit`.
    pub fn admit(&mut self) -> usize {
        self.share();
        self.make_room();
        let before = self.running.len();
        while let Some(index) = self.next_to_admit()
            && let Some(waiting) = self.waiting.get(index)
            && let found = self.find(waiting)
            && self.is_likely_to_fit(waiting, &found)
            // Only one page more than was found: the others are taken when there are tokens to put into them.
            && let Some(mut pages) = self.pages.take(&found.pages, found.pages.len() + 1)
            && let Some(waiting) = self.waiting.remove(index)
        {
            let published = found.pages.len();
            let reused = published * PAGE_TOKENS;
            self.hold(found.snapshot);
            // Capacity for all pages it may ever need, so that no later step allocates.
            pages.reserve_exact(Pages::needed(waiting.max_len).saturating_sub(pages.len()));
            self.running.push(Running {
                prefill_len: known(&waiting.job),
                job: waiting.job,
                prompt_len: waiting.prompt_len,
                max_len: waiting.max_len,
                reused,
                cached: reused,
                planned: 0,
                slot: self.slots.take(),
                pages,
                published,
                restore: found.snapshot,
                parting: found.parting,
                saves: Vec::new(),
                rolling: None,
            });
        }
        self.running.len() - before
    }

    /// The waiting generation to admit next, if there is a slot for it.
    ///
    /// A prompt that needs more than one more step lends its slot to a prompt that needs at most one step, because it
    /// will not decode for a while: what `max_batch` bounds is how many generations decode at once. If the lender is
    /// ready before the borrower has finished, it waits with its last row until a slot is free.
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

    /// Whether the free pages suffice for `waiting`, whose pages `found` are cached already, and for all running
    /// generations, if each answer reaches the usual length.
    fn is_likely_to_fit(&self, waiting: &Waiting<T>, found: &Found) -> bool {
        // All pages are free then, and no generation needs more than all of them.
        if self.running.is_empty() {
            return true;
        }
        let own = self.likely_pages(waiting.prompt_len, known(&waiting.job), waiting.max_len);
        let others = self.running.iter().map(|one| {
            let at = one.prefill_len.max(one.cached);
            let all = self.likely_pages(one.prompt_len, at, one.max_len);
            all.saturating_sub(one.pages.len())
        });
        self.pages.cost(&found.pages, own) + others.sum::<usize>() <= self.pages.free()
    }

    /// Pages that a generation, now at position `at`, is likely to need in the end: enough for an answer of the usual
    /// length, or for one page more than it has if it is longer already.
    fn likely_pages(&self, prompt_len: usize, at: usize, max_len: usize) -> usize {
        let usual = prompt_len + self.typical_tokens as usize;
        Pages::needed(usual.max(at + PAGE_TOKENS).min(max_len))
    }

    /// Gives every running generation pages for the rows that it runs next at least. While none is free, preempts the newest generation.
    fn make_room(&mut self) {
        let mut index = 0;
        while let Some(end) = self.running.get(index).map(Running::next_end) {
            if self.cover(index, end) >= end {
                index += 1;
            } else if let Some(mut newest) = self.running.pop() {
                newest.drop_snapshots(&mut self.pages);
                self.pages.give_back(&newest.pages);
                self.slots.give_back(newest.slot);
                self.preemptions += 1;
                self.waiting.push_front(Waiting {
                    job: newest.job,
                    prompt_len: newest.prompt_len,
                    max_len: newest.max_len,
                });
            }
        }
    }

    /// Allocates pages for the first `end` positions of a generation, as far as pages are free; returns how many of
    /// these positions have a page.
    pub(super) fn cover(&mut self, index: usize, end: usize) -> usize {
        let pages = &mut self.running[index].pages;
        let missing = Pages::needed(end).saturating_sub(pages.len());
        if missing > 0 {
            let some = missing.min(self.pages.free());
            self.pages.extend(pages, some);
        }
        end.min(pages.len() * PAGE_TOKENS)
    }

    /// Gives prompts that have not begun the pages that other generations have published since their admission.
    fn share(&mut self) {
        for running in self
            .running
            .iter_mut()
            .filter(|one| one.awaits_its_first_step())
        {
            let found = self.pages.find(running.prefill(), running.job.salt());
            running.parting = found.parting;
            if let Some(new @ [_, ..]) = found.pages.get(running.published..) {
                running.drop_snapshots(&mut self.pages);
                self.pages.give_back(&running.pages[running.published..]);
                running.pages.truncate(running.published);
                self.pages.share(new);
                running.pages.extend(new);
                running.published = found.pages.len();
                running.reused = running.published * PAGE_TOKENS;
                running.cached = running.reused;
                running.restore = found.snapshot;
                if let (Some(snapshots), Some(found)) = (self.pages.snapshots_mut(), found.snapshot)
                {
                    snapshots.hold(found);
                }
            }
        }
    }

    /// Holds the snapshot that a generation will begin with.
    fn hold(&mut self, snapshot: Option<u32>) {
        if let (Some(snapshots), Some(snapshot)) = (self.pages.snapshots_mut(), snapshot) {
            snapshots.hold(snapshot);
        }
    }

    fn find(&self, waiting: &Waiting<T>) -> Found {
        if waiting.job.scores_prompt() {
            return Found::default();
        }
        let known = &waiting.job.tokens()[..known(&waiting.job)];
        self.pages.find(known, waiting.job.salt())
    }
}
