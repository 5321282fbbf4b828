//! Accepts connections and refuses those beyond the limit, even when the process has no file descriptor left.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::listener::{Listener, Socket};
use crate::http::error_body::TOO_MANY_CONNECTIONS;

/// The pause after a failed accept: retrying at once would only use up processor time.
const PAUSE_AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(100);
/// How long a refused connection stays open so that its client can read the refusal. Closing it at once would reset the
/// connection if the client has already sent its request, and the refusal would be lost.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// Bytes that are read from a refused connection at most: enough for the head of a request.
const MOST_UNREAD_BYTES: usize = 64 << 10;
/// Refused connections that stay open at once; any more are closed right after the refusal is sent.
const MAX_REFUSALS: usize = 64;

/// Accepts connections. It keeps a file descriptor in reserve: without it, when descriptors run out, a connection could
/// be neither accepted nor refused, and its client would wait until its own timeout.
pub struct Acceptor {
    listener: Listener,
    spare: Option<File>,
}

impl Acceptor {
    /// Accepts from `listener`.
    pub fn new(listener: Listener) -> Self {
        Self {
            listener,
            spare: reserve(),
        }
    }

    /// The next connection.
    ///
    /// # Errors
    /// A connection that took the last descriptor; the caller must refuse it.
    pub async fn accept(&mut self) -> Result<Socket, Socket> {
        loop {
            if self.spare.is_none() {
                self.spare = reserve();
            }
            let problem = match self.listener.accept().await {
                Ok(socket) => return Ok(socket),
                Err(problem) => problem,
            };
            // The client closed the connection before it was accepted: not an error of the server. Other errors need a
            // pause.
            if problem.kind() == io::ErrorKind::ConnectionAborted {
                continue;
            }
            if is_out_of_descriptors(&problem) && self.spare.take().is_some() {
                // The connection waits in the listener's backlog, so accepting it does not take long, unless its client
                // has closed it.
                let accepted = timeout(PAUSE_AFTER_FAILED_ACCEPT, self.listener.accept()).await;
                if let Ok(Ok(socket)) = accepted {
                    tracing::debug!("no file descriptor left: a connection is refused");
                    return Err(socket);
                }
            }
            tracing::warn!(error = %problem, "cannot accept connections");
            sleep(PAUSE_AFTER_FAILED_ACCEPT).await;
        }
    }
}

/// Opens a file to reserve its descriptor. Any file will do.
fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

fn is_out_of_descriptors(problem: &io::Error) -> bool {
    let errno = Errno::from_io_error(problem);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE))
}

/// Refuses connections, a bounded number at a time.
#[derive(Clone)]
pub struct Refusals(Arc<Semaphore>);

impl Default for Refusals {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_REFUSALS)))
    }
}

impl Refusals {
    /// Tells the client that there are too many connections, and closes the connection when the client has read that.
    pub fn refuse(&self, socket: Socket) {
        self.close_with(socket, TOO_MANY_CONNECTIONS);
    }

    /// Sends `answer`, and closes the connection when the client has read it.
    pub fn close_with(&self, socket: Socket, answer: &[u8]) {
        socket.send_at_once(answer);
        let Ok(place) = Arc::clone(&self.0).try_acquire_owned() else {
            return;
        };
        let mut socket = socket.into_bytes();
        tokio::spawn(async move {
            let read_on = async {
                socket.shutdown().await?;
                while socket.read(&mut [0; 1024]).await? > 0 {}
                io::Result::Ok(())
            };
            let _whatever_the_client_does = timeout(REFUSAL_TIME, read_on).await;
            drop(place);
        });
    }
}

/// The same for a connection whose descriptor is needed for the next one: closes it at once. The bytes of its request
/// that have arrived are read first, so that the connection is not reset.
pub fn refuse_at_once(socket: Socket) {
    socket.send_at_once(TOO_MANY_CONNECTIONS);
    let Ok(mut socket) = socket.into_reader() else {
        return;
    };
    let mut left = MOST_UNREAD_BYTES;
    // This does not block: the socket is non-blocking.
    while let Ok(count @ 1..) = socket.read(&mut [0; 1024]) {
        left = left.saturating_sub(count);
        if left == 0 {
            return;
        }
    }
}
