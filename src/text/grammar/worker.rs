//! The one permanent thread that compiles grammars in this process.
//!
//! The allocator gives concurrent threads separate heaps, and a heap hardly shrinks again. Compiling takes tens of
//! megabytes for a moment. With a new thread for each grammar, one heap after the other would grow to the size of the
//! largest grammar; with one thread there is only one such heap, however many grammars are compiled.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use tokio::sync::oneshot;

use super::trial;

type Work = Box<dyn FnOnce() + Send>;

/// Runs jobs one after the other on a thread that starts with the first job and ends when this is dropped.
pub struct Worker {
    to_do: Mutex<Option<Sender<Work>>>,
}

impl Worker {
    /// A worker whose thread has not started yet.
    pub const fn new() -> Self {
        Self {
            to_do: Mutex::new(None),
        }
    }

    /// Queues `work` behind the earlier jobs; the caller bounds their number. The returned receiver gets the result, or
    /// an error if the work panics.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<oneshot::Receiver<T>> {
        let (sender, receiver) = oneshot::channel();
        let work = move || {
            // The receiver may have been dropped.
            let _ = sender.send(work());
        };
        let mut to_do = self.to_do.lock().unwrap_or_else(PoisonError::into_inner);
        let to_do = match to_do.as_mut() {
            Some(to_do) => to_do,
            None => to_do.insert(start()?),
        };
        // The thread accepts work as long as this sender exists.
        let _ = to_do.send(Box::new(work));
        Ok(receiver)
    }
}

/// Starts the thread, with a stack for every grammar that passed its trial.
fn start() -> io::Result<Sender<Work>> {
    let (sender, receiver) = channel();
    let thread = thread::Builder::new().name("grammar".into());
    let thread = thread.stack_size(trial::MORE_STACK);
    thread.spawn(move || work_off(&receiver))?;
    Ok(sender)
}

fn work_off(to_do: &Receiver<Work>) {
    // Best effort: if the system does not allow it, the thread keeps the normal priority.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), trial::NICE);
    for work in to_do {
        // The caller sees that no result comes, and the panic is logged.
        let _ = catch_unwind(AssertUnwindSafe(work));
    }
}

#[cfg(test)]
mod tests {
    use std::thread::ThreadId;

    use super::*;

    #[tokio::test]
    async fn all_work_is_done_on_one_thread_whatever_panics() {
        let worker = Worker::new();
        let here = || thread::current().id();
        let first: ThreadId = worker.run(here).unwrap().await.unwrap();
        let panics = worker.run(|| panic!("as it should")).unwrap();
        let panicked: Result<(), _> = panics.await;
        assert!(panicked.is_err());
        assert_eq!(worker.run(here).unwrap().await, Ok(first));
        assert_ne!(first, here());
    }
}
