//! Whether a client takes what is written to it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// What a stalled client has to take before it counts as reading again. A byte now and then would keep a stream and all
/// that waits for it in memory for as long as the client likes.
const LEAST_PROGRESS: usize = 4 << 10;

/// Makes a peer that stops reading, or hardly reads, an error after a while.
///
/// Without it a client that opens a stream and never reads would hold its connection, its buffers and its place in the
/// batch until it cares to leave. The error drops the response body, and that frees the rest.
pub struct Stall {
    limit: Duration,
    /// Runs out at the end of the present stall.
    timer: Pin<Box<Sleep>>,
    /// What has been taken since the present stall began, if there is one.
    taken: Option<usize>,
}

impl Stall {
    /// Allows writes to make no progress for `limit`.
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            timer: Box::pin(sleep(limit)),
            taken: None,
        }
    }

    /// Notes that all there was to write has been taken.
    pub const fn end(&mut self) {
        self.taken = None;
    }

    /// Passes on the outcome of an attempt to write, unless the stall has lasted too long.
    pub fn watch(
        &mut self,
        attempt: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = attempt {
            let taken = self.taken.map(|taken| taken + count);
            self.taken = taken.filter(|&taken| taken < LEAST_PROGRESS);
        }
        if attempt.is_ready() {
            return attempt;
        }
        if self.taken.is_none() {
            self.taken = Some(0);
            self.timer.as_mut().reset(Instant::now() + self.limit);
        }
        match self.timer.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }
}
