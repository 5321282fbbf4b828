//! How many lines the log gets about refused requests: clients can cause refusals at any rate.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines a second about refusals for want of room, which clients can cause at any rate: the metrics count them all.
const REJECTED_LINES: u64 = 1;
/// Lines a second about other refusals: enough to find a request by its id in all but a flood.
const REFUSED_LINES: u64 = 20;
/// There is one log, so there is one limit, however many ports are served.
static REJECTED: Limiter = Limiter::new(REJECTED_LINES);
static REFUSED: Limiter = Limiter::new(REFUSED_LINES);

/// Whether a request of this status gets a line, and then how many of its kind got none since the last one.
pub fn suppressed(status: u16) -> Option<u64> {
    match status {
        429 | 503 => REJECTED.admit(Instant::now()),
        400..500 => REFUSED.admit(Instant::now()),
        _ => Some(0),
    }
}

/// Lets so many lines a second through, and counts the others.
struct Limiter {
    per_second: u64,
    state: Mutex<Option<Window>>,
}

/// A second, and what came in it.
struct Window {
    began: Instant,
    admitted: u64,
    /// Since the last line.
    suppressed: u64,
}

impl Limiter {
    const fn new(per_second: u64) -> Self {
        Self {
            per_second,
            state: Mutex::new(None),
        }
    }

    /// `None` for a line too many, or else how many of those there were since the last line.
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
