//! Whose turn it is among several flows, such as the clients with different API keys.
//!
//! The next place in the batch goes to a flow that has less than its share of the places. Of several, and if there is none,
//! it goes to the one with the lowest counter: each flow counts the tokens that it was served, divided by its weight. A
//! flow that becomes active begins at the lowest counter of those that are active already, so nobody saves up turns while
//! idle. This is start-time fair queueing, with tokens as its costs: those of a prompt count when it is admitted, and those
//! of an answer as they are generated, because nobody knows their number before.

use crate::engine::request::Flow;

/// Flows that are remembered although nothing of them waits or runs, because they were served more than others.
const MOST_IDLE: usize = 1024;

/// The flows of which something waits or runs.
#[derive(Debug, Default)]
pub(super) struct Flows {
    flows: Vec<Counted>,
    /// The counter with which a flow begins.
    floor: f64,
}

#[derive(Debug)]
struct Counted {
    flow: Flow,
    /// Tokens served, divided by the weight.
    served: f64,
    waiting: usize,
    running: usize,
}

impl Counted {
    const fn is_active(&self) -> bool {
        self.waiting + self.running > 0
    }
}

impl Flows {
    /// A generation of `flow` waits from now on.
    pub fn arrive(&mut self, flow: Flow) {
        match self.flows.iter_mut().find(|one| one.flow.id == flow.id) {
            Some(one) => {
                if !one.is_active() {
                    one.served = one.served.max(self.floor);
                }
                // The weight may have been changed by the operator.
                one.flow = flow;
                one.waiting += 1;
            }
            None => self.flows.push(Counted {
                flow,
                served: self.floor,
                waiting: 1,
                running: 0,
            }),
        }
    }

    /// One that waited runs now, and its prompt costs so many `tokens`.
    pub fn admit(&mut self, flow: Flow, tokens: usize) {
        if let Some(one) = self.find(flow) {
            one.waiting -= 1;
            one.running += 1;
        }
        self.charge(flow, tokens);
    }

    /// One that ran waits again.
    pub fn preempt(&mut self, flow: Flow) {
        if let Some(one) = self.find(flow) {
            one.running -= 1;
            one.waiting += 1;
        }
    }

    /// One that ran or waited is gone.
    pub fn leave(&mut self, flow: Flow, was_running: bool) {
        if let Some(one) = self.find(flow) {
            match was_running {
                true => one.running -= 1,
                false => one.waiting -= 1,
            }
        }
        let active = self.flows.iter().filter(|one| one.is_active()).count();
        let (mut idle, floor) = (self.flows.len() - active, self.floor);
        if active == 0 {
            // Nobody is left who could be behind.
            self.flows.clear();
            return;
        }
        self.flows.retain(|one| {
            let is_kept = one.is_active() || (one.served > floor && idle <= MOST_IDLE);
            idle -= usize::from(!is_kept);
            is_kept
        });
    }

    /// A flow was served so many `tokens`.
    pub fn charge(&mut self, flow: Flow, tokens: usize) {
        if let Some(one) = self.find(flow) {
            one.served += tokens as f64 / one.flow.weight;
        }
        let active = self.flows.iter().filter(|one| one.is_active());
        let lowest = active.map(|one| one.served).min_by(f64::total_cmp);
        self.floor = self.floor.max(lowest.unwrap_or(0.0));
    }

    /// The flows of which something waits, in the order of their turns, in place of what is in `order`: first those that have
    /// less than their share of the `places` in the batch, and of these, as of the others, the one that was served least.
    pub fn order(&self, places: usize, order: &mut Vec<u64>) {
        order.clear();
        let waiting = self.flows.iter().filter(|one| one.waiting > 0);
        order.extend(waiting.map(|one| one.flow.id));
        if order.len() > 1 {
            let rank = |id: &u64| {
                let one = self.flows.iter().find(|one| one.flow.id == *id);
                one.map_or((false, 0.0, 0.0), |one| {
                    let has_share = (one.running + 1) as f64 > self.share(*id, places);
                    // Between equals it is the turn of the one with fewer places.
                    (has_share, one.served, one.running as f64 / one.flow.weight)
                })
            };
            order.sort_by(|a, b| {
                let (a, b) = (rank(a), rank(b));
                a.0.cmp(&b.0)
                    .then(a.1.total_cmp(&b.1))
                    .then(a.2.total_cmp(&b.2))
            });
        }
    }

    /// Whether more than one flow has something that waits or runs.
    pub fn are_several(&self) -> bool {
        self.flows.iter().filter(|one| one.is_active()).count() > 1
    }

    /// The share of `all` that the flow `id` has by its weight among the active ones.
    pub fn share(&self, id: u64, all: usize) -> f64 {
        let active = self.flows.iter().filter(|one| one.is_active());
        let total: f64 = active.map(|one| one.flow.weight).sum();
        let own = self.flows.iter().find(|one| one.flow.id == id);
        own.map_or(0.0, |own| all as f64 * own.flow.weight / total)
    }

    /// How many generations of the flow `id` run.
    pub fn running(&self, id: u64) -> usize {
        let one = self.flows.iter().find(|one| one.flow.id == id);
        one.map_or(0, |one| one.running)
    }

    fn find(&mut self, flow: Flow) -> Option<&mut Counted> {
        self.flows.iter_mut().find(|one| one.flow.id == flow.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn flow(id: u64, weight: u32) -> Flow {
        Flow {
            id,
            weight: weight as f64,
        }
    }

    fn next(flows: &Flows) -> u64 {
        let mut order = Vec::new();
        // So many places that nobody has its share.
        flows.order(1_000_000, &mut order);
        order[0]
    }

    #[test]
    fn turns_follow_the_weights() {
        let (light, heavy) = (flow(1, 1), flow(2, 4));
        let mut flows = Flows::default();
        for _ in 0..500 {
            flows.arrive(light);
            flows.arrive(heavy);
        }
        let mut served = [0, 0];
        for _ in 0..500 {
            let id = next(&flows);
            let flow = if id == 1 { light } else { heavy };
            flows.admit(flow, 8);
            flows.leave(flow, true);
            served[id as usize - 1] += 1;
        }
        assert_eq!(served, [100, 400]);
        assert_eq!(flows.share(2, 15), 12.0);
    }

    #[test]
    fn whoever_was_idle_has_saved_up_nothing_and_whoever_took_more_is_not_forgiven() {
        let (first, second) = (flow(1, 1), flow(2, 1));
        let mut flows = Flows::default();
        for _ in 0..10 {
            flows.arrive(first);
        }
        for _ in 0..5 {
            flows.admit(first, 1000);
        }
        // Not five thousand tokens behind: it gets its turn, and then they alternate.
        for _ in 0..3 {
            flows.arrive(second);
        }
        let mut turns = Vec::new();
        for _ in 0..6 {
            let id = next(&flows);
            turns.push(id);
            flows.admit(if id == 1 { first } else { second }, 100);
        }
        let of_second = turns.iter().filter(|&&id| id == 2).count();
        assert_eq!((turns[0], of_second), (2, 3), "{turns:?}");

        // Leaving for a moment does not make up for what was taken.
        flows.charge(second, 10_000);
        for _ in 0..3 {
            flows.leave(second, true);
        }
        flows.arrive(second);
        assert_eq!(next(&flows), 1);
    }

    #[test]
    fn flows_that_come_and_go_leave_nothing_behind() {
        let mut flows = Flows::default();
        flows.arrive(flow(0, 1));
        for id in 1..5000 {
            flows.arrive(flow(id, 1));
            flows.admit(flow(id, 1), 50);
            flows.leave(flow(id, 1), true);
        }
        assert!(flows.flows.len() <= MOST_IDLE + 1, "{}", flows.flows.len());
        flows.leave(flow(0, 1), false);
        assert!(flows.flows.is_empty());
    }
}
