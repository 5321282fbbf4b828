//! Who gets a slot and KV pages, and who has to give them back.

use super::{Job, Running, Scheduler, Waiting, known};
use crate::engine::pages::Pages;
use crate::model::PAGE_TOKENS;

impl<T: Job> Scheduler<T> {
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
    pub(super) fn cover(&mut self, index: usize, end: usize) -> usize {
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

    fn find(&self, waiting: &Waiting<T>) -> Vec<u32> {
        if waiting.job.scores_prompt() {
            return Vec::new();
        }
        let known = &waiting.job.tokens()[..known(&waiting.job)];
        self.pages.find(known, waiting.job.salt())
    }
}
