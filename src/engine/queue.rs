//! Where generations wait between the callers and the engine's thread, and what the two sides tell each other.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use tokio::sync::watch;

use super::forecast::{Bounds, Newcomers, NoRoom, Situation};
use super::recent_steps::RecentSteps;
use super::request::Flow;
use super::scheduler::{Job as _, Load};
use super::sequence::Sequence;
use super::{Health, QueuePart, Refusal, Step};

/// A shorter wait would only make the client retry while the queue is still full.
const MIN_RETRY: Duration = Duration::from_secs(1);
/// Beyond a minute the estimate is an extrapolation too far to be useful.
const MAX_RETRY: Duration = Duration::from_secs(60);
/// Weight of the newest measurement in the drain rate: it averages about the last ten admissions.
const NEWEST_SHARE: f64 = 0.2;

/// The queue. Its lock is held only briefly: neither side computes while it holds it.
#[derive(Debug)]
pub(super) struct Queue {
    bounds: Bounds,
    max_batch: usize,
    state: Mutex<State>,
    arrived: Condvar,
    health: watch::Sender<Health>,
    gauges: Gauges,
}

/// The gauges that the queue keeps.
#[derive(Debug)]
pub(super) struct Gauges {
    /// `requests_waiting`.
    pub requests: IntGauge,
    /// `prompt_tokens_waiting`.
    pub tokens: IntGauge,
}

#[derive(Debug)]
struct State {
    /// Submitted, but not yet taken by the engine.
    arrivals: Vec<Sequence>,
    /// Submitted to run in the background, if nothing else does; not yet taken by the engine.
    background: Option<Sequence>,
    /// What waits for a slot in the batch, and what runs, by flow: with those that were submitted since.
    loads: Vec<Load>,
    /// Free slots in the batch that no waiting generation will take, if nothing was submitted since.
    places: usize,
    drain_rate: DrainRate,
    /// Tokens of prompts that are computed in a second, once that was measured.
    prefill_rate: Option<f64>,
    /// When the current step began.
    step_began: Option<Instant>,
    /// How many steps have begun so far.
    step_number: u64,
    /// Rows of the current step, once it is planned.
    step_rows: usize,
    recent_steps: RecentSteps,
}

impl Queue {
    /// An empty, open queue in front of a batch with `max_batch` free slots.
    pub fn new(bounds: Bounds, max_batch: usize, gauges: Gauges) -> Self {
        Self {
            bounds,
            max_batch,
            state: Mutex::new(State {
                arrivals: Vec::new(),
                background: None,
                loads: Vec::new(),
                places: max_batch,
                drain_rate: DrainRate::default(),
                prefill_rate: None,
                step_began: None,
                step_number: 0,
                step_rows: 0,
                recent_steps: RecentSteps::default(),
            }),
            arrived: Condvar::new(),
            health: watch::Sender::new(Health::Running),
            gauges,
        }
    }

    /// Queues all of `sequences` or none of them. They are of one flow.
    pub fn push(&self, sequences: Vec<Sequence>) -> Result<(), Refusal> {
        let Some(first) = sequences.first() else {
            return Ok(());
        };
        let mut state = self.lock();
        let tokens = |sequences: &[Sequence]| sequences.iter().map(Sequence::prompt_len).sum();
        let mut newcomers = Newcomers {
            flow: first.flow(),
            count: sequences.len(),
            tokens: tokens(&sequences),
            waiting_tokens: 0,
        };
        let waiting = state.situation(self.max_batch).waiting(newcomers);
        newcomers.waiting_tokens = tokens(&sequences[sequences.len() - waiting..]);
        self.check_room(&state, newcomers)?;
        state.add_load(newcomers);
        state.arrivals.extend(sequences);
        self.show_waiting(&state);
        self.arrived.notify_one();
        Ok(())
    }

    /// Whether `count` sequences of `flow` would be accepted now, if their prompts were short.
    pub fn has_room(&self, flow: Flow, count: usize) -> Result<(), Refusal> {
        let newcomers = Newcomers {
            flow,
            count,
            tokens: count,
            waiting_tokens: count,
        };
        self.check_room(&self.lock(), newcomers)
    }

    fn check_room(&self, state: &State, newcomers: Newcomers) -> Result<(), Refusal> {
        match self.health() {
            Health::Running => {}
            Health::Draining => return Err(Refusal::Draining),
            Health::Stopped | Health::Failed => return Err(Refusal::Stopped),
        }
        let situation = state.situation(self.max_batch);
        let Err(no_room) = situation.check(newcomers, self.bounds) else {
            return Ok(());
        };
        // The time until all of those that wait have a slot, not only the next one: many clients get the same answer, and
        // all of them retry.
        let until_begun = situation.until_begun(newcomers);
        let retry_after = |seconds: f64| {
            Duration::try_from_secs_f64(seconds.ceil())
                .unwrap_or(MAX_RETRY)
                .clamp(MIN_RETRY, MAX_RETRY)
        };
        let full = |part| Refusal::QueueFull {
            part,
            retry_after: retry_after(until_begun),
        };
        Err(match no_room {
            NoRoom::Requests => full(QueuePart::Requests),
            NoRoom::Tokens => full(QueuePart::Tokens),
            NoRoom::Share => full(QueuePart::Share),
            NoRoom::Late(seconds) => Refusal::Late {
                retry_after: retry_after(seconds),
            },
        })
    }

    /// Queues `sequence` to run in the background, if no other waits or runs. Returns whether that is so. The last step of
    /// what ran before may still be ending.
    pub fn push_background(&self, sequence: Sequence) -> bool {
        let mut state = self.lock();
        // Slots are free for newcomers only while nobody waits for one.
        let is_idle = state.arrivals.is_empty()
            && state.background.is_none()
            && state.places == self.max_batch
            && self.health() == Health::Running;
        if is_idle {
            state.background = Some(sequence);
            self.arrived.notify_one();
        }
        is_idle
    }

    /// Hands all arrivals to the engine, which begins a step, and what is to run in the background. If there are none and the
    /// engine is `idle`, blocks until one arrives; `None` means that none will arrive any more.
    pub fn take(&self, idle: bool) -> Option<(Vec<Sequence>, Option<Sequence>)> {
        let mut state = self.lock();
        state.end_step();
        if idle {
            while state.arrivals.is_empty() && state.background.is_none() {
                if self.health() != Health::Running {
                    return None;
                }
                state = self
                    .arrived
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
        state.step_began = Some(Instant::now());
        state.step_number += 1;
        let background = state.background.take();
        Some((std::mem::take(&mut state.arrivals), background))
    }

    /// Whether a generation in the background is to end, because another has come or the engine drains.
    pub fn displaces_background(&self) -> bool {
        let state = self.lock();
        !state.arrivals.is_empty() || self.health() != Health::Running
    }

    /// Called by the engine while it has nothing to do until a client has read: ends the step, and returns after `time`, or
    /// earlier if one arrives.
    pub fn rest(&self, time: Duration) {
        let mut state = self.lock();
        state.end_step();
        if state.arrivals.is_empty() {
            let rested = self.arrived.wait_timeout(state, time);
            drop(rested.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Called by the engine: the step that it begins to compute has this many rows.
    pub fn run_rows(&self, rows: usize) {
        self.lock().step_rows = rows;
    }

    /// Called by the engine: the current step was given up before its end, because nobody waits for it any more.
    pub fn give_up_step(&self) {
        let mut state = self.lock();
        let rows = std::mem::take(&mut state.step_rows);
        if let Some(began) = state.step_began {
            state.recent_steps.observe_part(rows, began.elapsed());
        }
    }

    /// Called by the engine after it `admitted` some sequences into the batch: what waits and runs, with buffers changed
    /// for those of the last call; how many slots are free, and how fast prompts are computed.
    pub fn report(
        &self,
        loads: &mut Vec<Load>,
        places: usize,
        admitted: usize,
        prefill_rate: Option<f64>,
    ) {
        let mut state = self.lock();
        std::mem::swap(&mut state.loads, loads);
        let waiting: usize = state.loads.iter().map(|load| load.waiting).sum();
        // Slots that the head of the queue cannot use for lack of KV pages are not offered to requests behind it.
        state.places = if waiting == 0 { places } else { 0 };
        state.prefill_rate = prefill_rate;
        state
            .drain_rate
            .observe(admitted, waiting > 0, Instant::now());
        // Those that came while the step was computed.
        let arrivals = std::mem::take(&mut state.arrivals);
        for sequence in &arrivals {
            state.add_load(Newcomers {
                flow: sequence.flow(),
                count: 1,
                tokens: sequence.prompt_len(),
                waiting_tokens: 0,
            });
        }
        state.arrivals = arrivals;
        self.show_waiting(&state);
    }

    /// Refuses all generations from now on.
    pub fn drain(&self) {
        let _state = self.lock();
        if self.health() == Health::Running {
            self.health.send_replace(Health::Draining);
        }
        self.arrived.notify_one();
    }

    /// Called by the engine when it ends: in which state. Generations that it has not taken fail.
    pub fn close(&self, end: Health) {
        let mut state = self.lock();
        self.health.send_replace(end);
        state.step_began = None;
        state.loads.clear();
        let arrivals = std::mem::take(&mut state.arrivals);
        let background = state.background.take();
        self.show_waiting(&state);
        drop(state);
        drop((arrivals, background));
    }

    /// The state of the engine.
    pub fn health(&self) -> Health {
        *self.health.borrow()
    }

    /// A receiver on which to wait for a change of health.
    pub fn watch_health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// The current step; `None` while the engine is idle.
    pub fn step(&self) -> Option<Step> {
        let state = self.lock();
        state.step_began.map(|_| Step {
            number: state.step_number,
            usual: state.recent_steps.longest(state.step_rows),
        })
    }

    /// How long the current step has been running; `None` while the engine is idle.
    pub fn step_age(&self) -> Option<Duration> {
        self.lock().step_began.map(|began| began.elapsed())
    }

    fn show_waiting(&self, state: &State) {
        let total = |of: fn(&Load) -> usize| -> i64 {
            let sum: usize = state.loads.iter().map(of).sum();
            sum.try_into().unwrap_or(i64::MAX)
        };
        self.gauges.requests.set(total(|load| load.waiting));
        self.gauges.tokens.set(total(|load| load.waiting_tokens));
    }

    /// Poisoning is ignored: no code panics while it holds the lock, and the state is consistent after every statement.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn situation(&self, max_batch: usize) -> Situation<'_> {
        Situation {
            loads: &self.loads,
            places: self.places,
            max_batch,
            seconds_per_place: self.drain_rate.seconds(Instant::now()),
            prefill_rate: self.prefill_rate,
        }
    }

    /// Adds what was submitted to what waits.
    fn add_load(&mut self, newcomers: Newcomers) {
        let flow = newcomers.flow;
        let at = self.loads.iter().position(|load| load.flow.id == flow.id);
        let at = at.unwrap_or_else(|| {
            self.loads.push(Load::of(flow));
            self.loads.len() - 1
        });
        self.loads[at].waiting += newcomers.count;
        self.loads[at].waiting_tokens += newcomers.tokens;
    }

    /// Records how long the step took that has just ended, if it had any work.
    fn end_step(&mut self) {
        let rows = std::mem::take(&mut self.step_rows);
        if let Some(began) = self.step_began.take()
            && rows > 0
        {
            self.recent_steps.observe(rows, began.elapsed());
        }
    }
}

/// How fast slots become free, measured while at least one generation waits for one.
#[derive(Debug, Default)]
struct DrainRate {
    /// Seconds per slot, averaged; zero until measured.
    seconds: f64,
    /// When a generation last left the queue, or when the queue began to fill; `None` while it is empty.
    still_since: Option<Instant>,
}

impl DrainRate {
    /// Records that `admitted` generations left the queue at `now`, and whether others are still `waiting`.
    fn observe(&mut self, admitted: usize, waiting: bool, now: Instant) {
        if admitted > 0
            && let Some(since) = self.still_since.take()
        {
            let newest = (now - since).as_secs_f64() / admitted as f64;
            self.seconds = if self.seconds == 0.0 {
                newest
            } else {
                self.seconds + NEWEST_SHARE * (newest - self.seconds)
            };
        }
        self.still_since = if waiting {
            self.still_since.or(Some(now))
        } else {
            None
        };
    }

    /// How long until another slot is likely to be free.
    fn seconds(&self, now: Instant) -> f64 {
        let still = self.still_since.map_or(0.0, |since| {
            now.saturating_duration_since(since).as_secs_f64()
        });
        // A queue that has not moved for longer than usual has become slower, though there is no new measurement yet.
        self.seconds.max(still)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_was_given_up_is_not_measured() {
        let bounds = Bounds {
            requests: 1,
            tokens: 1,
            first_token: None,
        };
        let gauge = |name| IntGauge::new(name, "of a test").unwrap();
        let gauges = Gauges {
            requests: gauge("requests"),
            tokens: gauge("tokens"),
        };
        let queue = Queue::new(bounds, 1, gauges);
        let usual = || queue.step().unwrap().usual;
        let begin = |rows| {
            queue.take(false).unwrap();
            queue.run_rows(rows);
        };
        begin(512);
        queue.give_up_step();
        begin(512);
        assert_eq!(usual(), None, "the one before told nothing");
        begin(512);
        assert!(usual().is_some(), "the one before went to its end");
    }

    #[test]
    fn a_queue_that_stands_still_is_slower_than_was_measured_and_an_empty_one_is_not_measured() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rate = DrainRate::default();
        assert_eq!(rate.seconds(start), 0.0, "nothing measured");
        rate.observe(16, true, at(0));
        rate.observe(2, true, at(6));
        assert_eq!(rate.seconds(at(6)), 3.0);
        assert_eq!(
            rate.seconds(at(11)),
            5.0,
            "it stands still for five seconds"
        );
        rate.observe(1, false, at(9));
        rate.observe(3, false, at(500));
        assert_eq!(rate.seconds(at(500)), 3.0, "an empty queue is not measured");
    }
}
