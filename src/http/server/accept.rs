//! Taking connections, and refusing those that are too many: also when the process has no file descriptor left.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::http::error_body::TOO_MANY_CONNECTIONS;

/// When the system cannot accept connections, trying again at once would only burn the core.
const PAUSE_AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(100);
/// How long a client that was refused may take to read why. Closing at once would reset the connection if the client
/// has sent its request already, and the refusal would be lost.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// Of a request that came with its connection: a head.
const MOST_UNREAD_BYTES: usize = 64 << 10;
/// Refusals that are being read; beyond that, connections are closed without ado.
const MAX_REFUSALS: usize = 64;

/// Accepts connections. It keeps a file descriptor in reserve: without one, a connection too many could be neither
/// taken nor refused, and its client would wait until it gives up.
pub struct Acceptor {
    listener: TcpListener,
    spare: Option<File>,
}

impl Acceptor {
    /// Accepts from `listener`.
    pub fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            spare: reserve(),
        }
    }

    /// The next connection.
    ///
    /// # Errors
    /// With a connection that took the last descriptor: it has to be refused.
    pub async fn accept(&mut self) -> Result<TcpStream, TcpStream> {
        loop {
            if self.spare.is_none() {
                self.spare = reserve();
            }
            let problem = match self.listener.accept().await {
                Ok((socket, _peer)) => return Ok(socket),
                Err(problem) => problem,
            };
            // A client that left the queue is no problem of ours; anything else needs time to pass.
            if problem.kind() == io::ErrorKind::ConnectionAborted {
                continue;
            }
            if is_out_of_descriptors(&problem) && self.spare.take().is_some() {
                // It waits in the queue of the port, so this does not take long; unless its client has left by now.
                let accepted = timeout(PAUSE_AFTER_FAILED_ACCEPT, self.listener.accept()).await;
                if let Ok(Ok((socket, _peer))) = accepted {
                    tracing::debug!("no file descriptor left: a connection is refused");
                    return Err(socket);
                }
            }
            tracing::warn!(error = %problem, "cannot accept connections");
            sleep(PAUSE_AFTER_FAILED_ACCEPT).await;
        }
    }
}

/// Any open file will do.
fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

fn is_out_of_descriptors(problem: &io::Error) -> bool {
    let errno = Errno::from_io_error(problem);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE))
}

/// Refuses connections, a bounded number at a time.
pub struct Refusals(Arc<Semaphore>);

impl Default for Refusals {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_REFUSALS)))
    }
}

impl Refusals {
    /// Tells the client that there are too many connections, and closes this one when that has been read.
    pub fn refuse(&self, mut socket: TcpStream) {
        send_refusal(&socket);
        let Ok(place) = Arc::clone(&self.0).try_acquire_owned() else {
            return;
        };
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

/// The same for a connection whose descriptor is needed for the next one: closes it at once, after what has come of its
/// request, so that it is not reset.
pub fn refuse_at_once(socket: TcpStream) {
    send_refusal(&socket);
    let Ok(mut socket) = socket.into_std() else {
        return;
    };
    let mut left = MOST_UNREAD_BYTES;
    // It does not wait: the socket is not blocking.
    while let Ok(count @ 1..) = socket.read(&mut [0; 1024]) {
        left = left.saturating_sub(count);
        if left == 0 {
            return;
        }
    }
}

fn send_refusal(socket: &TcpStream) {
    // A new connection has room for so few bytes, though the runtime has not seen that yet.
    let _client_may_be_gone = send(socket, TOO_MANY_CONNECTIONS, SendFlags::NOSIGNAL);
}
