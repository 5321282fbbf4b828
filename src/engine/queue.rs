//! Where generations wait between the callers and the engine's thread, and what the two sides tell each other.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use tokio::sync::watch;

use super::recent_steps::RecentSteps;
use super::sequence::Sequence;
use super::{Health, Refusal, Step};

/// A shorter wait would only make the client retry while the queue is still full.
const MIN_RETRY: Duration = Duration::from_secs(1);
/// Beyond a minute the estimate is an extrapolation too far to be useful.
const MAX_RETRY: Duration = Duration::from_secs(60);
/// Weight of the newest measurement in the drain rate: it averages about the last ten admissions.
const NEWEST_SHARE: f64 = 0.2;

/// The queue. Its lock is held only briefly: neither side computes while it holds it.
#[derive(Debug)]
pub(super) struct Queue {
    max_queue: usize,
    state: Mutex<State>,
    arrived: Condvar,
    health: watch::Sender<Health>,
    /// `requests_waiting`.
    waiting: IntGauge,
}

#[derive(Debug)]
struct State {
    /// Submitted, but not yet taken by the engine.
    arrivals: Vec<Sequence>,
    /// Taken by the engine, and still waiting for a slot in the batch.
    waiting: usize,
    /// Free slots in the batch that no waiting generation will take.
    places: usize,
    drain_rate: DrainRate,
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
    pub fn new(max_queue: usize, max_batch: usize, waiting: IntGauge) -> Self {
        Self {
            max_queue,
            state: Mutex::new(State {
                arrivals: Vec::new(),
                waiting: 0,
                places: max_batch,
                drain_rate: DrainRate::default(),
                step_began: None,
                step_number: 0,
                step_rows: 0,
                recent_steps: RecentSteps::default(),
            }),
            arrived: Condvar::new(),
            health: watch::Sender::new(Health::Running),
            waiting,
        }
    }

    /// Queues all of `sequences` or none of them.
    pub fn push(&self, sequences: Vec<Sequence>) -> Result<(), Refusal> {
        let mut state = self.lock();
        self.check_room(&state, sequences.len())?;
        state.arrivals.extend(sequences);
        self.show_waiting(&state);
        self.arrived.notify_one();
        Ok(())
    }

    /// Whether `count` sequences would be accepted now.
    pub fn has_room(&self, count: usize) -> Result<(), Refusal> {
        self.check_room(&self.lock(), count)
    }

    fn check_room(&self, state: &State, count: usize) -> Result<(), Refusal> {
        match self.health() {
            Health::Running => {}
            Health::Draining => return Err(Refusal::Draining),
            Health::Stopped | Health::Failed => return Err(Refusal::Stopped),
        }
        // Requests that fit a free batch slot do not count against `max_queue`.
        let waiting = state.waiting + state.arrivals.len() + count;
        if waiting > self.max_queue + state.places {
            // The time until all of them have a slot, not only the next one: many clients get the same answer, and all
            // of them retry.
            let ahead = waiting - state.places;
            let retry_after = state.drain_rate.time_for(ahead, Instant::now());
            return Err(Refusal::QueueFull { retry_after });
        }
        Ok(())
    }

    /// Hands all arrivals to the engine, which begins a step. If there are none and the engine is `idle`, blocks until
    /// one arrives; `None` means that none will arrive any more.
    pub fn take(&self, idle: bool) -> Option<Vec<Sequence>> {
        let mut state = self.lock();
        state.end_step();
        if idle {
            while state.arrivals.is_empty() {
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
        state.waiting += state.arrivals.len();
        Some(std::mem::take(&mut state.arrivals))
    }

    /// Called by the engine: the step that it begins to compute has this many rows.
    pub fn run_rows(&self, rows: usize) {
        self.lock().step_rows = rows;
    }

    /// Called by the engine after it `admitted` some sequences into the batch: how many still wait, and how many slots
    /// are free.
    pub fn report(&self, waiting: usize, places: usize, admitted: usize) {
        let mut state = self.lock();
        state.waiting = waiting;
        // Slots that the head of the queue cannot use for lack of KV pages are not offered to requests behind it.
        state.places = if waiting == 0 { places } else { 0 };
        state
            .drain_rate
            .observe(admitted, waiting > 0, Instant::now());
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
        state.waiting = 0;
        let arrivals = std::mem::take(&mut state.arrivals);
        self.show_waiting(&state);
        drop(state);
        drop(arrivals);
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
        let waiting = state.waiting + state.arrivals.len();
        self.waiting.set(waiting.try_into().unwrap_or(i64::MAX));
    }

    /// Poisoning is ignored: no code panics while it holds the lock, and the state is consistent after every statement.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
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

    /// How long until `places` more slots are likely to be free.
    fn time_for(&self, places: usize, now: Instant) -> Duration {
        let still = self.still_since.map_or(0.0, |since| {
            now.saturating_duration_since(since).as_secs_f64()
        });
        // A queue that has not moved for longer than usual has become slower, though there is no new measurement yet.
        let seconds = self.seconds.max(still) * places as f64;
        Duration::try_from_secs_f64(seconds.ceil())
            .unwrap_or(MAX_RETRY)
            .clamp(MIN_RETRY, MAX_RETRY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_retry_time_follows_the_drain_rate_within_its_bounds() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rate = DrainRate::default();
        assert_eq!(rate.time_for(5, start), MIN_RETRY, "nothing measured");
        rate.observe(16, true, at(0));
        rate.observe(2, true, at(6));
        assert_eq!(rate.time_for(4, at(6)), Duration::from_secs(12));
        assert_eq!(rate.time_for(1000, at(6)), MAX_RETRY);
        assert_eq!(
            rate.time_for(4, at(11)),
            Duration::from_secs(20),
            "it stands still for five seconds"
        );
        rate.observe(1, false, at(9));
        rate.observe(3, false, at(500));
        assert_eq!(
            rate.time_for(4, at(500)),
            Duration::from_secs(12),
            "an empty queue is not measured"
        );
    }
}
