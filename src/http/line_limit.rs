//! Limits the log lines about refused requests, because clients can cause refusals at any rate.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The status of Anthropic's API in place of 503.
pub const OVERLOADED: u16 = 529;
/// Lines per second about requests that are refused for lack of capacity (429, 503, 529). The metrics count all of them.
const REJECTED_LINES: u64 = 1;
/// Lines per second about other refusals: enough that a request can be found by its id unless there is a flood of
/// refusals.
const REFUSED_LINES: u64 = 20;
/// All ports share one limit, because they share one log.
static REJECTED: Limiter = Limiter::new(REJECTED_LINES);
static REFUSED: Limiter = Limiter::new(REFUSED_LINES);

/// Whether a request with this status is logged: `None` if not, or else how many of its kind were suppressed since the
/// last line.
pub fn suppressed(status: u16) -> Option<u64> {
    match status {
        429 | 503 | OVERLOADED => REJECTED.admit(Instant::now()),
        400..500 => REFUSED.admit(Instant::now()),
        _ => Some(0),
    }
}

/// Passes a fixed number of lines per second and counts the others.
struct Limiter {
    per_second: u64,
    state: Mutex<Option<Window>>,
}

/// A second and the number of lines in it.
struct Window {
    began: Instant,
    admitted: u64,
    /// Lines suppressed since the last line that passed.
    suppressed: u64,
}

impl Limiter {
    const fn new(per_second: u64) -> Self {
        Self {
            per_second,
            state: Mutex::new(None),
        }
    }

    /// `None` if the line is suppressed, or else how many lines were suppressed since the last one that passed.
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let window = state.get_or_insert(Window {
            began: now,
            admitted: 0,
            suppressed: 0,
        });
        if now.saturating_duration_since(window.began) >= Duration::from_secs(1) {
            (window.began, window.admitted) = (now, 0);
        }
        if window.admitted == self.per_second {
            window.suppressed += 1;
            return None;
        }
        window.admitted += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_leaves_one_line_a_second_and_the_number_of_the_others() {
        let (limiter, start) = (Limiter::new(1), Instant::now());
        let at = |milliseconds| limiter.admit(start + Duration::from_millis(milliseconds));
        assert_eq!(at(0), Some(0));
        assert!((1..500).all(|milliseconds| at(milliseconds).is_none()));
        assert_eq!(at(1000), Some(499));
        assert_eq!(at(1500), None);
        assert_eq!(at(9000), Some(1));
    }
}
