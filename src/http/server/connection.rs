//! A client's connection: its deadlines for idling, for sending a head and for reading the response, and how it is
//! closed.
//!
//! hyper has a single deadline for the time between requests and for the head of a request. Two are needed: proxies
//! that reuse connections expect them to stay open for a minute, but a client must not take a minute to send a head.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::exchange::Exchanges;
use super::stall::Stall;

/// How long, and how many bytes, input is read and discarded before a connection is closed while the client may still
/// be sending. Closing with unread bytes resets the connection, and the client would see the reset instead of its
/// response.
const LINGER: Duration = Duration::from_secs(2);
const MOST_LINGERING_BYTES: usize = 64 << 20;
/// Bytes that are read and discarded at a time.
const SCRATCH_BYTES: usize = 8 << 10;

/// The deadlines of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// From the first byte of a request until its head is complete; also from the start of the connection to its first
    /// byte.
    pub head: Duration,
    /// From the end of a response until the first byte of the next request.
    pub idle: Duration,
    /// How long the client may read nothing while bytes are waiting for it.
    pub stall: Duration,
    /// How long a client that has closed its sending side may go without receiving bytes.
    pub half_closed: Duration,
}

/// A socket that enforces the deadlines, lets clients close their sending side early, and closes without losing a
/// response that is still in flight.
pub struct Connection<S> {
    socket: S,
    deadlines: Deadlines,
    exchanges: Exchanges,
    /// The count of exchanges when hyper last read from the connection.
    seen: usize,
    /// Whether bytes of the next request have arrived.
    is_in_head: bool,
    /// The deadline of the present wait: for a first byte, for a head, for a half-closed client, or for the last bytes
    /// before closing.
    timer: Pin<Box<Sleep>>,
    /// When the client closed its sending side.
    half_closed: Option<Instant>,
    /// When a half-closed client last received bytes.
    last_write: Option<Instant>,
    /// Bytes that may still be discarded, once our sending side is closed.
    lingering: Option<usize>,
    /// Detects that the client does not read the response.
    stall: Stall,
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
            stall: Stall::new(deadlines.stall),
        }
    }

    fn is_answering(&self) -> bool {
        !self.seen.is_multiple_of(2)
    }

    fn set_timer(&mut self, limit: Duration) {
        self.timer.as_mut().reset(Instant::now() + limit);
    }

    /// Updates the state if a request has begun or ended since the last call.
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

    /// Reports the end of the input. While a request is being answered, it does so only after the client has received
    /// nothing for a while, because then the client has probably disconnected.
    fn poll_end(&mut self, since: Instant, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_answering() {
            let until = self.last_write.unwrap_or(since) + self.deadlines.half_closed;
            if self.timer.deadline() != until {
                self.timer.as_mut().reset(until);
            }
            ready!(self.timer.as_mut().poll(context));
        }
        Poll::Ready(Ok(()))
    }

    /// Passes on the result of an attempt to write, or an error if the client has read too little for too long.
    fn written(
        &mut self,
        attempt: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.half_closed.is_some() && matches!(attempt, Poll::Ready(Ok(_))) {
            self.last_write = Some(Instant::now());
        }
        self.stall.watch(attempt, context)
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
            // No deadline here: the body has its own, and generating the answer may take any time.
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
        self.written(attempt, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let attempt = Pin::new(&mut self.socket).poll_write_vectored(context, buffers);
        self.written(attempt, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    /// hyper flushes when it has written all its bytes. Of a TLS connection some may still be on their way to the socket.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.socket).poll_flush(context) {
            Poll::Pending => self.stall.watch(Poll::Pending, context).map_ok(drop),
            flushed => {
                self.stall.end();
                flushed
            }
        }
    }

    /// Closes the sending side. If the client may be in the middle of sending a request, its input is then read and
    /// discarded for a while.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut left = match self.lingering {
            Some(left) => left,
            None => {
                ready!(Pin::new(&mut self.socket).poll_shutdown(context))?;
                let is_idle = self.exchanges.count() == self.seen
                    && !self.is_answering()
                    && !self.is_in_head
                    && !self.exchanges.is_unread();
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
                // The client has closed its side too, or has disconnected.
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
    const STALL: Duration = Duration::from_secs(1);
    const HALF_CLOSED: Duration = Duration::from_millis(500);

    fn connection() -> (Connection<DuplexStream>, DuplexStream, Exchanges) {
        let (server, client) = duplex(1 << 10);
        let exchanges = Exchanges::default();
        let deadlines = Deadlines {
            head: HEAD,
            idle: IDLE,
            stall: STALL,
            half_closed: HALF_CLOSED,
        };
        let connection = Connection::new(server, deadlines, exchanges.clone());
        (connection, client, exchanges)
    }

    /// Reads until the deadline and returns how long that took.
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
        drop(exchanges.begin(false));
        assert!(time_out(&mut connection).await >= IDLE);

        drop(exchanges.begin(false));
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
        let _exchange = exchanges.begin(false);
        client.shutdown().await.unwrap();
        for _ in 0..5 {
            let waited = HALF_CLOSED / 2;
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

        // The body comes only after the answer was written and hyper has looked for it in vain.
        let (mut refused, mut client, exchanges) = self::connection();
        client.write_all(b"POST /").await.unwrap();
        refused.read_exact(&mut [0; 6]).await.unwrap();
        drop(exchanges.begin(true));
        let waited = tokio::time::timeout(HEAD, refused.read(&mut [0; 8])).await;
        assert!(waited.is_err(), "nothing to read yet");
        let start = Instant::now();
        let late = async {
            client.write_all(&[b'x'; 10_000]).await.unwrap();
            client
        };
        let (shut, _client) = tokio::join!(refused.shutdown(), late);
        shut.unwrap();
        assert!(start.elapsed() >= LINGER, "{:?}", start.elapsed());

        let (mut connection, mut client, _) = self::connection();
        client.write_all(b"GET /").await.unwrap();
        connection.read_exact(&mut [0; 5]).await.unwrap();
        let start = Instant::now();
        // More than the pipe's buffer holds, so it can be written only if it is read.
        let unread = async {
            client.write_all(&[b'x'; 10_000]).await.unwrap();
            client
        };
        let (shut, _client) = tokio::join!(connection.shutdown(), unread);
        shut.unwrap();
        assert!(start.elapsed() >= LINGER, "{:?}", start.elapsed());
    }

    /// Writes flushed chunks of 6 KiB without end, to a client that reads `bytes` every 400 ms, `times` times. Returns
    /// after what time writing failed.
    async fn write_to_reader_of(bytes: usize, times: usize) -> Duration {
        let (mut server, mut client, exchanges) = connection();
        let _exchange = exchanges.begin(false);
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
        assert!((STALL..reads / 2).contains(&waited), "{waited:?}");
    }
}
