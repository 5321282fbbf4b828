//! The progress of long work: a bar on a terminal, otherwise log lines.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between log lines: often enough to show progress, rarely enough not to flood a log.
const BETWEEN_LINES: Duration = Duration::from_secs(5);

/// Shows the progress of some work.
pub struct Progress {
    what: &'static str,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl Progress {
    /// For work called `what`, as a `bar` or as log lines.
    pub fn new(what: &'static str, bar: bool) -> Self {
        let style = ProgressStyle::with_template("{msg} {wide_bar} {percent} %");
        let bar = bar.then(|| {
            ProgressBar::new(0)
                .with_style(style.expect("the template is a constant"))
                .with_message(what)
        });
        Self {
            what,
            bar,
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
            tracing::info!(percent, "{}", self.what);
        }
    }

    /// Removes the bar.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
