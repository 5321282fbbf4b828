//! The progress of long work: a bar on a terminal, otherwise log lines. Both say how much time is left.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between log lines: often enough to show progress, rarely enough not to flood a log.
const BETWEEN_LINES: Duration = Duration::from_secs(5);

/// Shows the progress of some work.
pub struct Progress {
    what: &'static str,
    bar: Option<ProgressBar>,
    started: Instant,
    last_line: Instant,
}

impl Progress {
    /// For work called `what`, as a `bar` or as log lines.
    pub fn new(what: &'static str, bar: bool) -> Self {
        let style = ProgressStyle::with_template("{msg} {wide_bar} {percent} %, {eta} left");
        let bar = bar.then(|| {
            ProgressBar::new(0)
                .with_style(style.expect("the template is a constant"))
                .with_message(what)
        });
        Self {
            what,
            bar,
            started: Instant::now(),
            last_line: Instant::now(),
        }
    }

    /// Shows that `done` of `total` is done.
    pub fn show(&mut self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        } else if self.last_line.elapsed() >= BETWEEN_LINES {
            self.last_line = Instant::now();
            let percent = done.saturating_mul(100) / total.max(1);
            let left = left(self.started.elapsed(), done, total);
            tracing::info!(percent, seconds_left = left, "{}", self.what);
        }
    }

    /// Removes the bar.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The whole seconds that the rest takes, if it goes on as fast as so far; `None` before anything is done.
fn left(elapsed: Duration, done: u64, total: u64) -> Option<u64> {
    let rest = total.saturating_sub(done) as f64;
    let left = elapsed.as_secs_f64() * rest / done as f64;
    (done > 0).then_some(left.ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_takes_as_long_as_what_was_done() {
        let elapsed = Duration::from_secs(30);
        assert_eq!(left(elapsed, 3, 4), Some(10));
        assert_eq!(left(elapsed, 4, 4), Some(0));
        assert_eq!(left(elapsed, 0, 4), None);
        // A total that was too small is no reason to go wrong.
        assert_eq!(left(elapsed, 5, 4), Some(0));
    }
}
