//! Verifies that the served weights are those that were written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cli::progress::Progress;
use crate::config;
use crate::error::{Error, Result};
use crate::http::app::App;
use crate::int8::kernels::pool::Pool;
use crate::model::{Placement, packed};
use crate::sources::packed::Packed;
use crate::sources::{Change, Settings};
use crate::telemetry::{Metrics, WeightsState};

/// When weights are verified against their checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Verify {
    /// Never.
    Off,
    /// Slowly, while serving.
    #[default]
    Background,
    /// Before the service is ready, on all threads.
    Start,
}

/// Bytes to hash at once: this takes less than a millisecond, which a compute thread on the same core may have to wait.
const PIECE: usize = 256 << 10;
/// Share of one core for hashing. A step waits for its slowest thread, so time taken from one core slows all; at a
/// twentieth, the 2.5 GB of a 2B model take half a minute to two, depending on SHA instructions in the CPU. The 20 to
/// 100 MB/s that it reads are less than a hundredth of any machine's memory bandwidth.
const SHARE: f64 = 0.05;
/// Interval between checks of the file's length and modification time, which cost a system call each.
const LOOK: Duration = Duration::from_secs(1);

/// Verifies all weights on all threads.
///
/// # Errors
/// [`Error::BadModel`] naming the first tensor that differs.
pub fn at_start(weights: &Packed, sources: &Settings, metrics: &Metrics) -> Result<()> {
    let mut progress = Progress::new("verifying", sources.progress_bar);
    let mut pool = Pool::new(config::available_threads())?;
    packed::verify(weights, &mut pool, &mut |done, total| {
        progress.show(done, total);
    })?;
    progress.finish();
    metrics.set_weights_state(WeightsState::Verified);
    tracing::info!(file = %weights.file().path().display(), "the weights are what was written");
    Ok(())
}

/// Verifies the weights, unless that was done at the start. If they are used from the memory map, it verifies them
/// again after every write to the file. If they are damaged, the service stops answering: no answer is better than a
/// wrong one.
pub fn watch(
    weights: Packed,
    verify: Verify,
    placement: Placement,
    app: App,
    metrics: Arc<Metrics>,
) {
    let run = move || {
        lower_priority();
        let Err(error) = look_after(&weights, verify, placement, &metrics) else {
            return;
        };
        metrics.set_weights_state(WeightsState::Damaged);
        app.set_damaged();
        tracing::error!(
            "{error}; refusing requests until the server is restarted on whole weights"
        );
    };
    let started = std::thread::Builder::new().name("verify".into()).spawn(run);
    if let Err(error) = started {
        tracing::error!(%error, "no thread to verify the weights");
    }
}

/// Returns when something is wrong, or when a copy in memory has been verified, which cannot change.
fn look_after(
    weights: &Packed,
    verify: Verify,
    placement: Placement,
    metrics: &Metrics,
) -> Result<()> {
    let file = weights.file();
    if verify == Verify::Background {
        compare(weights, SHARE)?;
        metrics.set_weights_state(WeightsState::Verified);
        tracing::info!(file = %file.path().display(), "the weights are what was written");
    }
    if placement == Placement::Copy {
        return Ok(());
    }
    loop {
        std::thread::sleep(LOOK);
        match file.change() {
            Change::None => {}
            Change::Shrunk => return Err(shrunk(weights)),
            Change::Written => {
                tracing::warn!(
                    file = %file.path().display(),
                    "the weights were written to while they are served; comparing them again"
                );
                metrics.set_weights_state(WeightsState::Unverified);
                // Verifying quickly is now more important than the speed of the service.
                compare(weights, 1.0)?;
                metrics.set_weights_state(WeightsState::Verified);
            }
        }
    }
}

/// Verifies all weights, on this share of a core.
fn compare(weights: &Packed, share: f64) -> Result<()> {
    let (mut began, mut looked) = (Instant::now(), Instant::now());
    let mut before_piece = || {
        if looked.elapsed() > LOOK {
            looked = Instant::now();
            // Reading further would end the process.
            if weights.file().change() == Change::Shrunk {
                return Err(shrunk(weights));
            }
        }
        std::thread::sleep(began.elapsed().mul_f64(1.0 / share - 1.0));
        began = Instant::now();
        Ok(())
    };
    packed::verify_in_pieces(weights, PIECE, &mut before_piece)
}

fn shrunk(weights: &Packed) -> Error {
    let problem =
        "became shorter while it was served; replace files by renaming new ones into place";
    Error::bad_model(weights.file().path(), "length", problem)
}

/// Gives this thread the lowest priority, if the system can do that for one thread.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    {
        // The lowest priority. Where the system refuses it, the pauses remain.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
    }
}
