//! Generations whose clients read more slowly than tokens come.
//!
//! Without a bound, the tokens that a client has not read would take memory for as long as it likes, and computing them
//! would take time from others. So a generation that is too far ahead of its client gives up its slot and its pages. It
//! comes back, with the same tokens, when the client has read most of what waits for it: what the prefix cache has not
//! kept is then computed again, at the expense of its flow.

use super::{Job, Scheduler};

impl<T: Job> Scheduler<T> {
    /// Pauses the running generations that are ahead of their clients.
    pub(super) fn pause(&mut self) {
        let mut index = 0;
        while let Some(one) = self.running.get(index) {
            if !one.job.is_ahead() {
                index += 1;
                continue;
            }
            let paused = self.take_back(index);
            // It has no claim on a share of the others' slots and pages meanwhile.
            self.flows.leave(paused.job.flow(), true);
            self.paused.push(paused);
        }
    }

    /// Lets the paused generations wait for a slot whose clients have read. They are first in their flows, as whoever
    /// was preempted: they had a slot already.
    pub(super) fn resume(&mut self) {
        let resumed = self.paused.extract_if(.., |paused| paused.job.may_go_on());
        for one in resumed {
            self.flows.arrive(one.job.flow());
            self.waiting.push_front(one);
        }
    }
}
