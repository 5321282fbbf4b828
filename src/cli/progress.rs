//! Progress of long work: a bar for people, lines in the log for everyone else.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Often enough to see that it moves, seldom enough for a log.
const BETWEEN_LINES: Duration = Duration::from_secs(5);

/// Shows how far some work has come.
pub struct Progress {
    what: &'static str,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl Progress {
    /// For work called `what`; with a `bar` or in lines.
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

    /// `done` of `total` is done.
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

    /// Takes the bar away.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
