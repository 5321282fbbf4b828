//! Whether the weights that are served are those that were written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cli::progress::Progress;
use crate::config;
use crate::error::{Error, Result};
use crate::http::App;
use crate::int8::kernels::pool::Pool;
use crate::model::{Placement, packed};
use crate::sources::packed::Packed;
use crate::sources::{Change, Settings};
use crate::telemetry::{Metrics, WeightsState};

/// When weights are compared with their checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Verify {
    /// Never.
    Off,
    /// Beside the serving, slowly.
    #[default]
    Background,
    /// Before the service is ready, on all threads.
    Start,
}

/// Hashed at once: less than a millisecond, which is what a compute thread that shares the core may wait for it.
const PIECE: usize = 256 << 10;
/// Share of one core that hashing takes. A step waits for its slowest thread, so what is taken from one core is taken from
/// all; at a twentieth the 2.5 GB of a 2B model take half a minute to two, by whether the CPU has SHA instructions. The
/// pages that are read, some 20 to 100 MB/s, are less than a hundredth of any machine's memory bandwidth.
const SHARE: f64 = 0.05;
/// Between two looks at the file's length and time of change, which cost a system call each.
const LOOK: Duration = Duration::from_secs(1);

/// Compares all weights on all threads.
///
/// # Errors
/// [`Error::BadModel`] naming the first tensor that is not what was written.
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

/// Looks after the weights: compares them, unless that was done at the start, and if they are served from the map again
/// whenever the file was written to. When they are damaged the service stops answering: no answer is better than a wrong
/// one.
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

/// Returns when something is wrong, or when a copy has been found to be right, which stays so.
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
                // Now time counts more than a part of the speed.
                compare(weights, 1.0)?;
                metrics.set_weights_state(WeightsState::Verified);
            }
        }
    }
}

/// Compares all weights, on this share of a core.
fn compare(weights: &Packed, share: f64) -> Result<()> {
    let (mut began, mut looked) = (Instant::now(), Instant::now());
    let mut before_piece = || {
        if looked.elapsed() > LOOK {
            looked = Instant::now();
            // Reading on would end the process.
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

/// Lets everything else go first, where the system can do that for one thread.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    {
        // The lowest. A system that refuses it still has the pauses.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
    }
}
