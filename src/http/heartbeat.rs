//! The heartbeat of the thread that serves the API. Probes on another port are answered by a thread of their own, which
//! without it would call a server healthy whose API answers nobody.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The time between two beats. The thread handles a request in milliseconds.
const EVERY: Duration = Duration::from_secs(1);

/// When the thread that serves the API was last seen running.
#[derive(Debug, Default)]
pub struct Heartbeat(Mutex<Option<Instant>>);

impl Heartbeat {
    /// Beats for as long as the runtime of the caller runs.
    pub async fn keep_up(&self) {
        loop {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            tokio::time::sleep(EVERY).await;
        }
    }

    /// How long ago the last beat was; `None` if there was none, because nobody keeps it up.
    pub fn age(&self) -> Option<Duration> {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.map(|last| last.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_thread_that_hangs_is_not_heard_until_it_goes_on() {
        let heartbeat = Arc::new(Heartbeat::default());
        assert_eq!(heartbeat.age(), None);
        let (begin, begun) = channel();
        let (free, freed) = channel();
        let beating = Arc::clone(&heartbeat);
        let thread = std::thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_time().build().unwrap();
            runtime.block_on(async {
                let beats = tokio::spawn({
                    let beating = Arc::clone(&beating);
                    async move { beating.keep_up().await }
                });
                tokio::task::yield_now().await;
                begin.send(beating.age()).unwrap();
                // Nothing else runs on this thread meanwhile, as with a handler that does not return.
                freed.recv().unwrap();
                let before = beating.age();
                tokio::time::sleep(EVERY / 2).await;
                beats.abort();
                (before, beating.age())
            })
        });
        assert!(begun.recv().unwrap().is_some());
        std::thread::sleep(2 * EVERY);
        assert!(heartbeat.age() >= Some(2 * EVERY), "{heartbeat:?}");
        free.send(()).unwrap();
        let (before, after) = thread.join().unwrap();
        assert!(after < before, "{before:?} {after:?}");
    }
}
