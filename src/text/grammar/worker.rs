//! The thread that compiles grammars here: a single one, which stays.
//!
//! The allocator gives threads that work side by side heaps of their own, and a heap stays about as large as what was
//! once done in it. Compiling takes tens of megabytes for a moment. With a new thread for each grammar one heap after the
//! other grows to the size of the largest grammar; with one thread there is one such heap, however many grammars come.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use tokio::sync::oneshot;

use super::trial;

type Work = Box<dyn FnOnce() + Send>;

/// Does one thing after the other on a thread that starts with the first and ends when this is dropped.
pub struct Worker {
    to_do: Mutex<Option<Sender<Work>>>,
}

impl Worker {
    /// Without its thread yet.
    pub const fn new() -> Self {
        Self {
            to_do: Mutex::new(None),
        }
    }

    /// Has `work` done after all that was given before; the caller bounds how much that is. What is returned brings the
    /// result, or an error if the work panics.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<oneshot::Receiver<T>> {
        let (sender, receiver) = oneshot::channel();
        let work = move || {
            // Whoever waited may have left.
            let _ = sender.send(work());
        };
        let mut to_do = self.to_do.lock().unwrap_or_else(PoisonError::into_inner);
        let to_do = match to_do.as_mut() {
            Some(to_do) => to_do,
            None => to_do.insert(start()?),
        };
        // The thread takes work for as long as this sender lives.
        let _ = to_do.send(Box::new(work));
        Ok(receiver)
    }
}

/// Starts the thread, which has the stack for what came through a trial.
fn start() -> io::Result<Sender<Work>> {
    let (sender, receiver) = channel();
    let thread = thread::Builder::new().name("grammar".into());
    let thread = thread.stack_size(trial::MORE_STACK);
    thread.spawn(move || work_off(&receiver))?;
    Ok(sender)
}

fn work_off(to_do: &Receiver<Work>) {
    // Where that is not allowed it is no harm either.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), trial::NICE);
    for work in to_do {
        // Whoever waits sees that no result comes; the log has the panic.
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
