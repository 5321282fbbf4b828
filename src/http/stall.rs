//! A socket whose writes must make progress.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// What a stalled client has to take before it counts as reading again. A byte now and then would keep a stream and all
/// that waits for it in memory for as long as the client likes.
const LEAST_PROGRESS: usize = 4 << 10;

/// Wraps a connection so that a peer which stops reading, or hardly reads, is an error after a while.
///
/// Without it a client that opens a stream and never reads would hold its connection, its buffers and its place in the
/// batch until it cares to leave. The error drops the response body, and that frees the rest.
pub struct WriteStall<S> {
    socket: S,
    limit: Duration,
    /// Runs out at the end of the present stall.
    timer: Pin<Box<Sleep>>,
    /// What has been taken since the present stall began, if there is one.
    taken: Option<usize>,
}

impl<S> WriteStall<S> {
    /// Allows writes on `socket` to make no progress for `limit`.
    pub fn new(socket: S, limit: Duration) -> Self {
        Self {
            socket,
            limit,
            timer: Box::pin(sleep(limit)),
            taken: None,
        }
    }

    /// Passes on the outcome of an attempt to write, unless the stall has lasted too long.
    fn watch(
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

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteStall<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let attempt = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.watch(attempt, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let attempt = Pin::new(&mut self.socket).poll_write_vectored(context, buffers);
        self.watch(attempt, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    /// Called when all there was to write has been taken: so much for the stall.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.taken = None;
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteStall<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    /// Writes chunks of 6 KiB for ever, each flushed, to a client that reads `bytes` every 400 ms, `times` times. Returns
    /// when that failed.
    async fn write_to_reader_of(bytes: usize, times: usize) -> Duration {
        let (server, mut client) = duplex(1 << 10);
        let mut server = WriteStall::new(server, LIMIT);
        let start = Instant::now();
        let reader = tokio::spawn(async move {
            for _ in 0..times {
                sleep(Duration::from_millis(400)).await;
                client.read_exact(&mut vec![0; bytes]).await.unwrap();
            }
            client
        });
        let error = loop {
            let written = async {
                server.write_all(&[7; 6 << 10]).await?;
                server.flush().await
            };
            if let Err(error) = written.await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let waited = start.elapsed();
        reader.abort();
        waited
    }

    #[tokio::test]
    async fn whoever_reads_slowly_is_waited_for_and_whoever_stops_is_not() {
        let waited = write_to_reader_of(4 << 10, 5).await;
        assert!(waited > 5 * Duration::from_millis(400), "{waited:?}");
    }

    #[tokio::test]
    async fn a_byte_now_and_then_is_not_reading() {
        let (waited, reads) = (write_to_reader_of(1, 20).await, Duration::from_secs(8));
        assert!((LIMIT..reads / 2).contains(&waited), "{waited:?}");
    }
}
