//! A socket whose writes must make progress.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Wraps a connection so that a peer which stops reading is an error after a while.
///
/// Without it a client that opens a stream and never reads would hold its connection, its buffers and its place in the
/// batch until it cares to leave. The error drops the response body, and that frees the rest.
pub struct WriteStall<S> {
    socket: S,
    limit: Duration,
    /// Runs out at the end of the present stall.
    timer: Pin<Box<Sleep>>,
    is_stalled: bool,
}

impl<S> WriteStall<S> {
    /// Allows writes on `socket` to make no progress for `limit`.
    pub fn new(socket: S, limit: Duration) -> Self {
        Self {
            socket,
            limit,
            timer: Box::pin(sleep(limit)),
            is_stalled: false,
        }
    }

    /// Passes on the outcome of an attempt to write, unless the stall has lasted too long.
    fn watch<T>(
        &mut self,
        attempt: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if attempt.is_ready() {
            self.is_stalled = false;
            return attempt;
        }
        if !self.is_stalled {
            self.is_stalled = true;
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

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
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

    #[tokio::test]
    async fn only_a_stall_of_the_whole_limit_is_an_error() {
        let limit = Duration::from_secs(1);
        let (server, mut client) = duplex(4);
        let mut server = WriteStall::new(server, limit);
        let start = Instant::now();
        let reader = tokio::spawn(async move {
            let mut bytes = [0; 4];
            // Slow, but never as slow as the limit: four bytes at a time, then nothing more.
            for _ in 0..3 {
                sleep(Duration::from_millis(400)).await;
                client.read_exact(&mut bytes).await.unwrap();
            }
            client
        });
        server.write_all(&[7; 16]).await.unwrap();
        assert!(start.elapsed() > limit, "each stall counts for itself");
        let client = reader.await.unwrap();
        let error = server.write_all(&[7; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(client);
    }
}
