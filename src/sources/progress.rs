//! The progress of a download: a bar on a terminal, otherwise a log line from time to time.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between log lines: often enough to show progress, rarely enough not to flood a stored log.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// The progress of one file.
pub struct Meter {
    name: String,
    bar: Option<ProgressBar>,
    done: u64,
    total: u64,
    /// When the download began, and how much was there already.
    began: (Instant, u64),
    last_line: Instant,
}

impl Meter {
    /// A meter for the file `name` of `total` bytes (0 while unknown), drawn as a bar on standard error or logged.
    pub fn new(name: &str, total: u64, progress_bar: bool) -> Self {
        if !progress_bar {
            tracing::info!(file = name, "downloading");
        }
        let template = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} ({eta})";
        let bar = progress_bar.then(|| {
            let style = ProgressStyle::with_template(template);
            let bar = ProgressBar::new(total).with_message(name.to_owned());
            // The template is a constant of this file; if it were ever invalid, a plain bar still serves.
            style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style))
        });
        Self {
            name: name.into(),
            bar,
            done: 0,
            total,
            began: (Instant::now(), 0),
            last_line: Instant::now(),
        }
    }

    /// The file's size as announced by the server.
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// Bytes per second so far, and the seconds that the rest takes at this rate.
    fn pace(&self) -> (u64, Option<u64>) {
        let (began, there) = self.began;
        let arrived = self.done.saturating_sub(there) as f64;
        let rate = arrived / began.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        let rest = self.total.saturating_sub(self.done) as f64;
        let left = (rate > 0.0 && self.total > 0).then(|| (rest / rate).ceil() as u64);
        (rate as u64, left)
    }

    /// Announces the size and starts again from zero.
    pub fn start(&mut self, total: u64) {
        self.total = total;
        self.began = (Instant::now(), 0);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
        self.set(0);
    }

    /// Goes on where an earlier download ended, with `there` bytes.
    pub fn resume(&mut self, there: u64) {
        self.began = (Instant::now(), there);
        self.set(there);
    }

    /// Records that `done` bytes have arrived.
    pub fn set(&mut self, done: u64) {
        self.done = done;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let (rate, left) = self.pace();
            tracing::info!(
                file = self.name,
                bytes = done,
                of = self.total,
                bytes_per_second = rate,
                seconds_left = left,
                "downloading"
            );
        }
    }
}

impl Drop for Meter {
    /// Removes the bar, so that the next output does not share its line.
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl hf_hub::api::Progress for &mut Meter {
    fn init(&mut self, size: usize, _filename: &str) {
        self.start(size as u64);
    }

    fn update(&mut self, size: usize) {
        self.set(self.done + size as u64);
    }

    fn finish(&mut self) {}
}
