//! Handshakes of TLS, which happen before a connection speaks HTTP.
//!
//! A client that is in its handshake holds a place among the connections. When there is no other place for a new
//! connection, the oldest handshake that is slow gives up its own, so that clients that never finish theirs cannot keep
//! others out.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;

use super::accept::Refusals;
use super::listener::{Bytes, Socket};
use super::tls::Tls;
use crate::http::error_body::PLAIN_HTTP;

/// The first byte of every TLS connection: a record of type handshake.
const HANDSHAKE_RECORD: u8 = 22;
/// Plain text that the connection holds at most while the client does not read. As much is written at once.
const BUFFERED_BYTES: usize = 16 << 10;
/// A handshake that takes longer than this may have to give up its place. It takes two round trips: half a second
/// around the world, or between continents through a bad network.
const SLOW: Duration = Duration::from_secs(1);

/// Performs the handshake on a new connection, until `deadline`. `None` if it fails; the connection is closed then.
pub async fn shake(
    tls: &Tls,
    socket: Socket,
    deadline: Instant,
    refusals: &Refusals,
) -> Option<Box<dyn Bytes>> {
    let first = match timeout_at(deadline, socket.first_byte()).await {
        Ok(Ok(Some(first))) => first,
        // Probes of load balancers open a connection and close it again.
        Ok(Ok(None) | Err(_)) => return None,
        Err(_late) => {
            tls.count_failure("timeout");
            return None;
        }
    };
    if first != HANDSHAKE_RECORD {
        let is_text = first.is_ascii_uppercase();
        tls.count_failure(if is_text { "plain_http" } else { "protocol" });
        if is_text {
            refusals.close_with(socket, PLAIN_HTTP);
        }
        return None;
    }
    let limit = |session: &mut rustls::ServerConnection| {
        session.set_buffer_limit(Some(BUFFERED_BYTES));
    };
    let acceptor = TlsAcceptor::from(tls.config());
    let shaking = acceptor.accept_with(socket.into_bytes(), limit);
    let problem = match timeout_at(deadline, shaking).await {
        Ok(Ok(stream)) => return Some(Box::new(stream)),
        Ok(Err(problem)) => problem,
        Err(_late) => io::ErrorKind::TimedOut.into(),
    };
    tracing::debug!(error = %problem, "no TLS connection");
    tls.count_failure(reason(&problem));
    None
}

/// One of [`crate::telemetry::TLS_FAILURES`].
fn reason(problem: &io::Error) -> &'static str {
    use rustls::Error::{AlertReceived, InvalidCertificate, NoCertificatesPresented};
    if problem.kind() == io::ErrorKind::TimedOut {
        return "timeout";
    }
    let inner = problem.get_ref();
    match inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(AlertReceived(_)) => "refused_by_client",
        Some(InvalidCertificate(_) | NoCertificatesPresented) => "client_certificate",
        _ => "protocol",
    }
}

/// The handshakes that are going on.
pub struct Handshakes {
    tls: Arc<Tls>,
    /// In the order in which they began; some may have ended.
    begun: Vec<(Instant, AbortHandle)>,
    most: usize,
}

impl Handshakes {
    /// None yet; there are never more than `most`.
    pub fn new(tls: Arc<Tls>, most: usize) -> Self {
        Self {
            tls,
            begun: Vec::new(),
            most,
        }
    }

    /// The settings of TLS.
    pub const fn tls(&self) -> &Arc<Tls> {
        &self.tls
    }

    /// Remembers a handshake that has just begun.
    pub fn add(&mut self, handshake: AbortHandle) {
        if self.begun.len() >= self.most {
            self.begun.retain(|(_, handshake)| !handshake.is_finished());
        }
        self.begun.push((Instant::now(), handshake));
    }

    /// Ends the oldest handshake if it is slow; returns whether there was one.
    pub fn displace(&mut self) -> bool {
        self.begun.retain(|(_, handshake)| !handshake.is_finished());
        let is_slow = |(began, _): &(Instant, AbortHandle)| began.elapsed() > SLOW;
        if !self.begun.first().is_some_and(is_slow) {
            return false;
        }
        self.begun.remove(0).1.abort();
        self.tls.count_failure("displaced");
        true
    }
}

impl Drop for Handshakes {
    /// Ends all handshakes: the server stops, and none of these clients has sent a request.
    fn drop(&mut self) {
        for (_, handshake) in &self.begun {
            handshake.abort();
        }
    }
}
