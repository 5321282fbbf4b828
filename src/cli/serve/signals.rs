//! Signals: some end the service gracefully, and no other ends it by default.

use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures_util::stream::{SelectAll, poll_fn, select_all};
use futures_util::{Stream, StreamExt};
use tokio::runtime::{self, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::error::{Error, Result};
use crate::logging;

/// Time after draining: the server gives connections five seconds to receive their last bytes, and the log has one.
const GRACE: Duration = Duration::from_secs(8);
/// `EX_TEMPFAIL`: the process exited although something hung. Settings and model are not at fault.
const EXIT_HUNG: i32 = 75;
/// For the log line about it.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Signals that end the service: Kubernetes and systemd send SIGTERM, Ctrl-C and Ctrl-\ SIGINT and SIGQUIT; after
/// SIGXCPU and SIGPWR there is not much time left.
const STOPPING: &[(&str, libc::c_int)] = &[
    ("SIGTERM", libc::SIGTERM),
    ("SIGINT", libc::SIGINT),
    ("SIGQUIT", libc::SIGQUIT),
    ("SIGXCPU", libc::SIGXCPU),
    #[cfg(target_os = "linux")]
    ("SIGPWR", libc::SIGPWR),
];

/// Signals that end a process by default. SIGPIPE is ignored by every Rust program.
const IGNORED: &[(&str, libc::c_int)] = &[
    ("SIGHUP", libc::SIGHUP),
    ("SIGUSR1", libc::SIGUSR1),
    ("SIGUSR2", libc::SIGUSR2),
    ("SIGALRM", libc::SIGALRM),
    ("SIGVTALRM", libc::SIGVTALRM),
    ("SIGPROF", libc::SIGPROF),
    ("SIGXFSZ", libc::SIGXFSZ),
    #[cfg(target_os = "linux")]
    ("SIGIO", libc::SIGIO),
    #[cfg(target_os = "linux")]
    ("SIGSTKFLT", libc::SIGSTKFLT),
];

/// The reaction to a signal.
#[derive(Clone, Copy)]
struct Heard {
    name: &'static str,
    stops: bool,
}

/// Receives the signals that end the service.
pub struct StopSignals {
    requests: watch::Receiver<u32>,
    /// Whether there is anything to drain.
    is_serving: Arc<AtomicBool>,
}

impl StopSignals {
    /// Handles all signals from now on, on a separate thread. A few seconds after a signal that ends the service the
    /// process exits, even if something hangs; after the first such signal to a service with clients, `drain_timeout`
    /// later.
    ///
    /// # Errors
    /// [`Error::Internal`] if the system refuses a handler or the thread.
    pub fn listen(drain_timeout: Duration) -> Result<Self> {
        let failed = |problem| Error::Internal(format!("signals: {problem}"));
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let heard = handlers(&runtime).map_err(failed)?;
        let (stop_requests, requests) = watch::channel(0);
        let is_serving = Arc::new(AtomicBool::new(false));
        let watched = Watched {
            heard,
            stop_requests,
            is_serving: Arc::clone(&is_serving),
            drain_timeout,
        };
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || runtime.block_on(watch(watched)))
            .map_err(failed)?;
        Ok(Self {
            requests,
            is_serving,
        })
    }

    /// From now on there may be clients, whose answers get the time to drain.
    pub fn set_serving(&self) {
        self.is_serving.store(true, Relaxed);
    }

    /// Resolves at the next signal that ends the service. The second one ends it at once.
    pub async fn next(&mut self) {
        // The sender is on a thread that ends with the process.
        let _ = self.requests.changed().await;
    }
}

fn handlers(
    runtime: &Runtime,
) -> std::io::Result<SelectAll<impl Stream<Item = Heard> + Unpin + use<>>> {
    let _context = runtime.enter();
    let named = |signals: &'static [(&str, libc::c_int)], stops| {
        let heard = move |&(name, number)| (Heard { name, stops }, number);
        signals.iter().map(heard)
    };
    #[cfg(target_os = "linux")]
    let real_time = (libc::SIGRTMIN()..=libc::SIGRTMAX()).map(|number| {
        let name = "a real-time signal";
        (Heard { name, stops: false }, number)
    });
    #[cfg(not(target_os = "linux"))]
    let real_time = std::iter::empty();
    let streams = named(STOPPING, true)
        .chain(named(IGNORED, false))
        .chain(real_time)
        .map(|(heard, number)| {
            let mut signals = signal(SignalKind::from_raw(number))?;
            Ok(poll_fn(move |context| signals.poll_recv(context)).map(move |()| heard))
        });
    Ok(select_all(streams.collect::<std::io::Result<Vec<_>>>()?))
}

/// The state of the thread.
struct Watched<S> {
    heard: SelectAll<S>,
    stop_requests: watch::Sender<u32>,
    is_serving: Arc<AtomicBool>,
    drain_timeout: Duration,
}

async fn watch(mut watched: Watched<impl Stream<Item = Heard> + Unpin>) {
    let mut deadline: Option<Instant> = None;
    loop {
        let end = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(Heard { name, stops }) = watched.heard.next() => {
                if !stops {
                    tracing::info!(signal = name, "this signal does not end the service");
                    continue;
                }
                tracing::info!(signal = name, "asked to stop");
                let may_drain = deadline.is_none() && watched.is_serving.load(Relaxed);
                let left = if may_drain { watched.drain_timeout } else { Duration::ZERO };
                deadline = Some(Instant::now() + left + GRACE);
                watched.stop_requests.send_modify(|count| *count += 1);
            }
            () = end => {
                tracing::error!("something hangs and keeps the process from ending; leaving it behind");
                logging::flush(FLUSH_LIMIT);
                exit(EXIT_HUNG);
            }
        }
    }
}
