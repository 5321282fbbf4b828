//! Gives slots and KV pages to waiting generations, and takes them back by preemption.

use super::{Job, Running, Scheduler, Waiting, known};
use crate::engine::pages::{Found, Pages};
use crate::model::PAGE_TOKENS;

/// What a waiting generation is short of.
#[derive(Debug, Clone, Copy)]
enum Short {
    Slots,
    Pages,
}

impl<T: Job> Scheduler<T> {
    /// Prepares a step: pauses whoever is too far ahead of its client, makes sure that every running generation has a page for its next row, preempting the newest
    /// where pages are short, and gives free slots to waiting generations. Returns how many were admitted.
    ///
    /// Admission is in the order of `Flows`, and first come, first served within a flow and a priority, with one
    /// exception: while long prompts hold the slots, prompts that fit in one step may borrow a slot; see
    /// `borrows`.
    pub fn admit(&mut self) -> usize {
        self.gave_way = 0;
        self.resume();
        self.pause();
        self.share();
        self.make_room();
        self.make_way_for_decoding();
        let mut admitted = 0;
        while self.admit_next() {
            admitted += 1;
        }
        admitted
    }

    /// Admits one waiting generation, if there is room for one.
    fn admit_next(&mut self) -> bool {
        let Some(mut first) = self.next_in_order(|_| true) else {
            return false;
        };
        loop {
            let has_slot = self.running.len() < self.budget.max_batch;
            if has_slot && self.enter(first) {
                return true;
            }
            let short = if has_slot { Short::Pages } else { Short::Slots };
            if !self.make_way(first, short) {
                return !has_slot && self.borrows().is_some_and(|index| self.enter(index));
            }
            // What gave way waits in front of it.
            first += 1;
        }
    }

    /// The first in order of the waiting generations for which `fits` holds. A flow that has just given way gets nothing more
    /// in this step: it would give way again, without end.
    fn next_in_order(&mut self, fits: impl Fn(&Waiting<T>) -> bool) -> Option<usize> {
        let mut order = std::mem::take(&mut self.order);
        self.flows.order(self.budget.max_batch, &mut order);
        let found = order.iter().find_map(|&flow| {
            let mut gave_way = self.waiting.iter().take(self.gave_way);
            if gave_way.any(|one| one.job.flow().id == flow) {
                return None;
            }
            let all = self.waiting.iter().enumerate();
            let of_flow = all.filter(|(_, one)| one.job.flow().id == flow && fits(one));
            // The first of several with the lowest number.
            let first = of_flow.min_by_key(|(_, one)| one.job.priority());
            first.map(|(index, _)| index)
        });
        self.order = order;
        found
    }

    /// Admits a waiting generation if there are pages for it.
    fn enter(&mut self, index: usize) -> bool {
        let Some(waiting) = self.waiting.get(index) else {
            return false;
        };
        let found = self.find(waiting);
        if !self.is_likely_to_fit(waiting, &found) {
            return false;
        }
        // Only one page more than was found: the others are taken when there are tokens to put into them.
        let Some(mut pages) = self.pages.take(&found.pages, found.pages.len() + 1) else {
            return false;
        };
        let Some(waiting) = self.waiting.remove(index) else {
            return false;
        };
        let published = found.pages.len();
        let reused = published * PAGE_TOKENS;
        self.hold(found.snapshot);
        // Capacity for all pages it may ever need, so that no later step allocates.
        pages.reserve_exact(Pages::needed(waiting.max_len).saturating_sub(pages.len()));
        let prefill_len = known(&waiting.job);
        let cost = match waiting.was_preempted {
            // It has paid already, and it was not its fault.
            true => 0,
            false => prefill_len - reused,
        };
        self.flows.admit(waiting.job.flow(), cost);
        self.running.push(Running {
            prefill_len,
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
        true
    }

    /// The waiting generation that may borrow a slot.
    ///
    /// A prompt that needs more than one more step lends its slot to a prompt that needs at most one step, because it
    /// will not decode for a while: what `max_batch` bounds is how many generations decode at once. If the lender is
    /// ready before the borrower has finished, it waits with its last row until a slot is free.
    fn borrows(&mut self) -> Option<usize> {
        let step = self.budget.step_tokens;
        let running = self.running.iter();
        let lenders = running.filter(|one| one.prefill_left() > step).count();
        if self.running.len() >= self.budget.max_batch + lenders {
            return None;
        }
        self.next_in_order(|waiting| known(&waiting.job) <= step)
    }

    /// Preempts the newest generation of a flow that has more than its share of what the waiting generation `first` is
    /// short of, if its own flow has less than its share. Returns whether there was one.
    fn make_way(&mut self, first: usize, short: Short) -> bool {
        let Some(waiting) = self.waiting.get(first).filter(|_| self.flows.are_several()) else {
            return false;
        };
        let id = waiting.job.flow().id;
        let (has, needs) = match short {
            Short::Slots => (self.flows.running(id), 1),
            Short::Pages => {
                let (prompt, known) = (waiting.prompt_len, known(&waiting.job));
                let own = self.likely_pages(prompt, known, waiting.max_len);
                (self.pages_of(id), own)
            }
        };
        if (has + needs) as f64 > self.share_of(id, short) {
            return false;
        }
        match self.newest_of_the_greediest(short, |_| true) {
            Some(newest) => {
                self.preempt(newest);
                true
            }
            None => false,
        }
    }

    /// Lets a prompt begin to decode whose flow has no more than its share, while generations that decode take all slots: a
    /// borrower may have got between the prompt and its slot.
    fn make_way_for_decoding(&mut self) {
        if !self.flows.are_several() || self.decoding() < self.budget.max_batch {
            return;
        }
        let is_held_back = |one: &&Running<T>| {
            let id = one.job.flow().id;
            one.prefill_left() == 1
                && self.flows.running(id) as f64 <= self.share_of(id, Short::Slots)
        };
        if self.running.iter().any(|one| is_held_back(&one))
            && let Some(newest) = self.newest_of_the_greediest(Short::Slots, Running::is_decoding)
        {
            self.preempt(newest);
        }
    }

    /// The newest generation, of those for which `may` holds, of the flow that exceeds its share of slots or pages the most.
    fn newest_of_the_greediest(
        &self,
        short: Short,
        may: impl Fn(&Running<T>) -> bool,
    ) -> Option<usize> {
        let excess = |one: &Running<T>| {
            let id = one.job.flow().id;
            let has = match short {
                Short::Slots => self.flows.running(id),
                Short::Pages => self.pages_of(id),
            };
            has as f64 / self.share_of(id, short)
        };
        let running = self.running.iter().enumerate();
        let greedy = running.filter(|(_, one)| may(one) && excess(one) > 1.0);
        // The last of several that exceed it as much.
        let most = greedy.max_by(|a, b| excess(a.1).total_cmp(&excess(b.1)));
        most.map(|(index, _)| index)
    }

    fn share_of(&self, id: u64, short: Short) -> f64 {
        let all = match short {
            Short::Slots => self.budget.max_batch,
            Short::Pages => self.pages.count(),
        };
        self.flows.share(id, all)
    }

    /// The pages that a flow's generations hold.
    fn pages_of(&self, id: u64) -> usize {
        let own = self.running.iter().filter(|one| one.job.flow().id == id);
        own.map(|one| one.pages.len()).sum()
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

    /// Gives every running generation pages for the rows that it runs next at least. While none is free, preempts the
    /// newest generation: of the flow that exceeds its share of the pages the most, if there are several.
    fn make_room(&mut self) {
        let mut index = 0;
        while let Some(end) = self.running.get(index).map(Running::next_end) {
            if self.cover(index, end) >= end {
                index += 1;
                continue;
            }
            let greediest = match self.flows.are_several() {
                true => self.newest_of_the_greediest(Short::Pages, |_| true),
                false => None,
            };
            let newest = greediest.unwrap_or(self.running.len() - 1);
            self.preempt(newest);
            index -= usize::from(newest < index);
        }
    }

    /// Takes slot and pages from a running generation, which waits from now on, before all others of its flow.
    fn preempt(&mut self, index: usize) {
        let one = self.take_back(index);
        self.preemptions += 1;
        self.gave_way += 1;
        self.flows.preempt(one.job.flow());
        self.waiting.push_front(Waiting {
            was_preempted: true,
            ..one
        });
    }

    /// Takes slot and pages from a running generation.
    pub(super) fn take_back(&mut self, index: usize) -> Waiting<T> {
        let mut one = self.running.remove(index);
        one.drop_snapshots(&mut self.pages);
        self.pages.give_back(&one.pages);
        self.slots.give_back(one.slot);
        Waiting {
            job: one.job,
            prompt_len: one.prompt_len,
            max_len: one.max_len,
            was_preempted: false,
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
