//! Detects clients that do not read what is written to them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Bytes that a stalled client has to read before it counts as reading again. Otherwise a client that reads a byte now
/// and then could keep a stream and its buffers in memory for as long as it likes.
const LEAST_PROGRESS: usize = 4 << 10;

/// Makes writing fail after a while if the client stops reading or reads very slowly.
///
/// Without this, a client that opens a stream and never reads would keep its connection, its buffers and its batch slot
/// until it disconnects. The error drops the response body, and that frees all of them.
pub struct Stall {
    limit: Duration,
    /// The deadline of the present stall.
    timer: Pin<Box<Sleep>>,
    /// Bytes written since the present stall began; `None` if there is no stall.
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

    /// Ends the stall, because all bytes have been written.
    pub const fn end(&mut self) {
        self.taken = None;
    }

    /// Passes on the result of an attempt to write, or an error if the stall has lasted too long.
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
