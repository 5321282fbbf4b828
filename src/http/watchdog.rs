//! Watches the engine from a thread of its own, so that clients do not wait for a step that does not end.

use std::time::{Duration, Instant};

use crate::engine::{Engine, Step};

/// The time between two checks of the engine.
const TICK: Duration = Duration::from_millis(100);
/// No step counts as stalled earlier than this: the operating system itself can suspend a thread for a second.
const LEAST: Duration = Duration::from_secs(2);
/// A step may take this many times as long as the longest recent step, because the context may be longer or the machine
/// busier.
const TIMES_USUAL: u32 = 4;
/// A step that takes longer than this counts as stalled. This is also the limit for the first steps, for which there is
/// no measurement.
const MOST: Duration = Duration::from_secs(15);
/// `MOST` does not apply to a step below this many times the longest recent step: a large model on a small machine is
/// slow and not stalled.
const TIMES_USUAL_AT_LEAST: u32 = 2;

/// Watches `engine`, and calls `tell` at every check with whether a step has stalled. The thread ends when `tell`
/// returns `false`.
pub fn start(engine: Engine, tell: impl FnMut(bool) -> bool + Send + 'static) {
    let started = std::thread::Builder::new()
        .name("watchdog".into())
        .spawn(move || watch(&engine, tell));
    if let Err(error) = started {
        tracing::error!(%error, "no thread to watch the engine");
    }
}

fn watch(engine: &Engine, mut tell: impl FnMut(bool) -> bool) {
    let (mut watched, mut is_stalled, mut last) = (Watched::default(), false, Instant::now());
    loop {
        std::thread::sleep(TICK);
        let passed = last.elapsed();
        last = Instant::now();
        let stalled = watched.see(engine.step(), passed);
        match (is_stalled, stalled) {
            (false, Some(age)) => {
                let step_age = engine.step_age().unwrap_or(age);
                tracing::error!(?step_age, "a step does not end; refusing requests");
            }
            (true, None) => {
                tracing::warn!("the step has ended after all; taking requests again");
            }
            _ => {}
        }
        is_stalled = stalled.is_some();
        if !tell(is_stalled) {
            return;
        }
    }
}

/// A step, and for how long it has been observed running.
#[derive(Default)]
struct Watched {
    number: Option<u64>,
    seen: Duration,
}

impl Watched {
    /// How long the step has been running, if that is too long.
    ///
    /// Only time during which this thread ran too is counted: a process that is suspended as a whole, by a debugger or
    /// together with its machine, has not stalled.
    fn see(&mut self, step: Option<Step>, passed: Duration) -> Option<Duration> {
        let number = step.map(|step| step.number);
        if number.is_none() || number != self.number {
            *self = Self {
                number,
                seen: Duration::ZERO,
            };
            return None;
        }
        self.seen += passed.min(2 * TICK);
        let usual = step.and_then(|step| step.usual);
        let limit = usual.map_or(MOST, |usual| {
            let limit = usual.saturating_mul(TIMES_USUAL).clamp(LEAST, MOST);
            limit.max(usual.saturating_mul(TIMES_USUAL_AT_LEAST))
        });
        (self.seen > limit).then_some(self.seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds until a step counts as stalled.
    fn seconds(usual: Option<Duration>) -> f64 {
        let step = Some(Step { number: 7, usual });
        let mut watched = Watched::default();
        let ticks = (0..1000).take_while(|_| watched.see(step, TICK).is_none());
        (ticks.count() as u32 * TICK).as_secs_f64()
    }

    #[test]
    fn a_step_may_take_four_times_the_usual_within_bounds() {
        let about = |found: f64, expected: f64| (found - expected).abs() < 0.3;
        assert!(about(seconds(Some(Duration::from_millis(3))), 2.0));
        assert!(about(seconds(Some(Duration::from_secs(2))), 8.0));
        assert!(about(seconds(Some(Duration::from_secs(5))), 15.0));
        assert!(about(seconds(Some(Duration::from_secs(20))), 40.0));
        assert!(about(seconds(None), 15.0), "nothing measured yet");
    }

    #[test]
    fn another_step_an_idle_engine_and_a_stopped_process_are_no_stalls() {
        let usual = Some(Duration::from_millis(50));
        let mut watched = Watched::default();
        for number in 0..1000 {
            let step = Some(Step { number, usual });
            assert_eq!(watched.see(step, TICK), None);
            assert_eq!(watched.see(None, TICK), None);
        }
        let step = Some(Step { number: 7, usual });
        assert_eq!(watched.see(step, TICK), None);
        assert_eq!(watched.see(step, Duration::from_secs(3600)), None);
    }
}
