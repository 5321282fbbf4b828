//! A connection between requests: how long it may be idle, how long a head may take, and how it is closed.
//!
//! hyper has one deadline for the time between requests and for the head of a request. They have to differ: a proxy that
//! reuses connections expects them to stay open for a minute, and a client that trickles a head in should not.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// How long a client that has closed its sending side is given to take bytes. A client that left looks the same until
/// something is sent to it, and its place in the batch should soon be free.
const HALF_CLOSED_GRACE: Duration = Duration::from_millis(500);
/// How long and how much is read and thrown away before a connection is closed on a client that may still be sending.
/// Closing with bytes unread resets the connection, and the client would see that instead of its answer.
const LINGER: Duration = Duration::from_secs(2);
const MOST_LINGERING_BYTES: usize = 64 << 20;
/// Thrown away at a time.
const SCRATCH_BYTES: usize = 8 << 10;

/// How long a connection may take between requests.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// From the first byte of a request until its whole head is there, and from the start until the first byte.
    pub head: Duration,
    /// From the end of an answer until the first byte of the next request.
    pub idle: Duration,
}

/// Counts the exchanges of one connection: odd while a request is being answered, even between requests.
#[derive(Debug, Clone, Default)]
pub struct Exchanges(Arc<AtomicUsize>);

/// A request that is being answered, until this is dropped.
#[derive(Debug)]
pub struct Exchange(Exchanges);

impl Exchanges {
    /// Begins to answer a request.
    pub fn begin(&self) -> Exchange {
        self.0.fetch_add(1, Ordering::Relaxed);
        Exchange(self.clone())
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A response body whose end is the end of the exchange.
pub struct Answering {
    /// The body.
    pub body: Body,
    /// Ends with it.
    pub exchange: Exchange,
}

impl HttpBody for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that keeps the deadlines between requests, lets clients close their sending side early, and closes without
/// losing an answer that is still on its way.
pub struct Connection<S> {
    socket: S,
    deadlines: Deadlines,
    exchanges: Exchanges,
    /// The count of exchanges when hyper last read.
    seen: usize,
    /// Whether bytes of the next request have come.
    is_in_head: bool,
    /// The end of whichever wait is on: for a first byte, for a head, for a client that is half closed or lingers.
    timer: Pin<Box<Sleep>>,
    /// Since when the client has sent all that it will.
    half_closed: Option<Instant>,
    /// When bytes were last taken by a client that is half closed.
    last_write: Option<Instant>,
    /// Bytes that may still be thrown away, once the sending side is closed.
    lingering: Option<usize>,
}

impl<S> Connection<S> {
    /// A connection on `socket` that has just been accepted.
    pub fn new(socket: S, deadlines: Deadlines, exchanges: Exchanges) -> Self {
        Self {
            socket,
            deadlines,
            seen: exchanges.count(),
            exchanges,
            is_in_head: false,
            timer: Box::pin(sleep(deadlines.head)),
            half_closed: None,
            last_write: None,
            lingering: None,
        }
    }

    fn is_answering(&self) -> bool {
        !self.seen.is_multiple_of(2)
    }

    fn set_timer(&mut self, limit: Duration) {
        self.timer.as_mut().reset(Instant::now() + limit);
    }

    /// Notes that a request has begun or ended since the last time.
    fn follow(&mut self) {
        let count = self.exchanges.count();
        if count != self.seen {
            self.seen = count;
            self.is_in_head = false;
            if !self.is_answering() {
                self.set_timer(self.deadlines.idle);
            }
        }
    }

    /// The end of the input, if it may be told already: while an answer is owed, it waits for signs that the client has
    /// left altogether.
    fn poll_end(&mut self, since: Instant, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_answering() {
            let until = self.last_write.unwrap_or(since) + HALF_CLOSED_GRACE;
            if self.timer.deadline() != until {
                self.timer.as_mut().reset(until);
            }
            ready!(self.timer.as_mut().poll(context));
        }
        Poll::Ready(Ok(()))
    }

    fn note_write<T>(&mut self, attempt: &Poll<io::Result<T>>) {
        if self.half_closed.is_some() && matches!(attempt, Poll::Ready(Ok(_))) {
            self.last_write = Some(Instant::now());
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.follow();
        if self.half_closed.is_none() {
            let before = buffer.remaining();
            let read = Pin::new(&mut self.socket).poll_read(context, buffer);
            match read {
                Poll::Ready(Ok(())) if before > 0 && buffer.remaining() == before => {
                    self.half_closed = Some(Instant::now());
                }
                Poll::Ready(Ok(())) => {
                    if !self.is_answering() && !self.is_in_head {
                        self.is_in_head = true;
                        let limit = self.deadlines.head;
                        self.set_timer(limit);
                    }
                    return read;
                }
                Poll::Ready(Err(_)) => return read,
                Poll::Pending => {}
            }
        }
        if let Some(since) = self.half_closed {
            return self.poll_end(since, context);
        }
        if self.is_answering() {
            // The body has a deadline of its own, and the answer takes as long as it takes.
            return Poll::Pending;
        }
        ready!(self.timer.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let attempt = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.note_write(&attempt);
        attempt
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let attempt = Pin::new(&mut self.socket).poll_write_vectored(context, buffers);
        self.note_write(&attempt);
        attempt
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    /// Closes the sending side; then, if the client may be in the middle of a request, reads on for a while.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut left = match self.lingering {
            Some(left) => left,
            None => {
                ready!(Pin::new(&mut self.socket).poll_shutdown(context))?;
                let is_idle =
                    self.exchanges.count() == self.seen && !self.is_answering() && !self.is_in_head;
                if is_idle || self.half_closed.is_some() {
                    return Poll::Ready(Ok(()));
                }
                self.set_timer(LINGER);
                MOST_LINGERING_BYTES
            }
        };
        let mut scratch = [0; SCRATCH_BYTES];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.socket).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    left = left.saturating_sub(buffer.filled().len());
                    if left == 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
                // The client has closed its side too, or is gone.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        self.lingering = Some(left);
        self.timer.as_mut().poll(context).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const HEAD: Duration = Duration::from_millis(100);
    const IDLE: Duration = Duration::from_millis(700);

    fn connection() -> (Connection<DuplexStream>, DuplexStream, Exchanges) {
        let (server, client) = duplex(64);
        let exchanges = Exchanges::default();
        let deadlines = Deadlines {
            head: HEAD,
            idle: IDLE,
        };
        let connection = Connection::new(server, deadlines, exchanges.clone());
        (connection, client, exchanges)
    }

    /// Reads until the deadline and returns how long that was.
    async fn time_out(connection: &mut Connection<DuplexStream>) -> Duration {
        let start = Instant::now();
        let error = connection.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        start.elapsed()
    }

    #[tokio::test]
    async fn between_requests_there_is_more_time_than_within_a_head() {
        let (mut connection, mut client, exchanges) = connection();
        client.write_all(b"GET /").await.unwrap();
        connection.read_exact(&mut [0; 5]).await.unwrap();
        drop(exchanges.begin());
        assert!(time_out(&mut connection).await >= IDLE);

        drop(exchanges.begin());
        let waited = tokio::time::timeout(2 * HEAD, connection.read(&mut [0; 8])).await;
        assert!(
            waited.is_err(),
            "an idle connection has more time than a head"
        );
        client.write_all(b"GET /").await.unwrap();
        connection.read_exact(&mut [0; 5]).await.unwrap();
        let waited = time_out(&mut connection).await;
        assert!((HEAD..IDLE).contains(&waited), "{waited:?}");
    }

    #[tokio::test]
    async fn a_new_connection_that_sends_nothing_has_the_time_of_a_head() {
        let (mut connection, _client, _) = connection();
        let waited = time_out(&mut connection).await;
        assert!((HEAD / 2..IDLE).contains(&waited), "{waited:?}");
    }

    #[tokio::test]
    async fn a_half_closed_client_is_waited_for_as_long_as_it_takes_bytes() {
        let (mut connection, mut client, exchanges) = connection();
        let _exchange = exchanges.begin();
        client.shutdown().await.unwrap();
        for _ in 0..5 {
            let waited = HALF_CLOSED_GRACE / 2;
            let end = tokio::time::timeout(waited, connection.read(&mut [0; 8])).await;
            assert!(end.is_err(), "the end is not told yet");
            connection.write_all(b"token").await.unwrap();
        }
        assert_eq!(connection.read(&mut [0; 8]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn between_requests_the_end_is_told_at_once() {
        let (mut connection, client, _) = connection();
        drop(client);
        let end = tokio::time::timeout(HEAD / 2, connection.read(&mut [0; 8])).await;
        assert_eq!(end.expect("at once").unwrap(), 0);
    }

    #[tokio::test]
    async fn closing_reads_on_only_where_a_request_may_be_unread() {
        let (mut idle, _client, _) = connection();
        let start = Instant::now();
        idle.shutdown().await.unwrap();
        assert!(start.elapsed() < LINGER / 2, "it was idle");

        let (mut connection, mut client, _) = self::connection();
        client.write_all(b"GET /").await.unwrap();
        connection.read_exact(&mut [0; 5]).await.unwrap();
        let start = Instant::now();
        // More than the pipe holds: it is written only if it is read.
        let unread = async {
            client.write_all(&[b'x'; 1000]).await.unwrap();
            client
        };
        let (shut, _client) = tokio::join!(connection.shutdown(), unread);
        shut.unwrap();
        assert!(start.elapsed() >= LINGER, "{:?}", start.elapsed());
    }
}
