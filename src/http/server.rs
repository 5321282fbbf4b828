//! Connections: how many, how fast they must be, and how they end.
//!
//! An accept loop of our own on hyper, because axum's has no limit on connections, no deadline for headers and none
//! for clients that do not read.

use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::error_body::TOO_MANY_CONNECTIONS;
use super::stall::WriteStall;
use super::{App, Phase, router};

/// Limits on connections. The defaults are for a port that strangers can reach.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Connections at once; more are refused. Each may hold a body of a megabyte, idle ones a few kilobytes.
    pub max_connections: usize,
    /// From the end of the last request, or from the start, until a whole head has come. So it is also how long an idle
    /// connection is kept.
    pub header_deadline: Duration,
    /// How long a client may read nothing while there is something to read.
    pub write_stall: Duration,
    /// Bytes of a request's headers; hyper answers 431 to more.
    pub header_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            header_deadline: Duration::from_secs(10),
            write_stall: Duration::from_secs(30),
            // Cookies and tokens of single sign-on stay below this.
            header_bytes: 32 << 10,
        }
    }
}

/// Clients send a dozen headers; proxies add a few. hyper answers 431 to more.
const MAX_HEADERS: usize = 64;
/// Bounds what a connection buffers in each direction, unless its headers may be longer.
const MAX_BUFFER_BYTES: usize = 64 << 10;
/// When the process is out of file descriptors, accepting fails at once and would be tried without a pause.
const PAUSE_AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(100);

/// A running service: the application on its port, until it is drained.
pub struct Server {
    app: App,
    stop: oneshot::Sender<()>,
    connections: JoinHandle<()>,
}

/// For the last bytes of answers that are complete: the rest of a slow client's window.
const FLUSH_GRACE: Duration = Duration::from_secs(5);

impl Server {
    /// Starts serving `app` on `listener`, on the runtime of the caller.
    pub fn start(listener: TcpListener, app: App, settings: Settings) -> Self {
        let (stop, stopped) = oneshot::channel();
        let stopped = async {
            // A server that was dropped stops too.
            let _ = stopped.await;
        };
        let serve = serve(
            listener,
            router(app.clone()),
            settings,
            stopped,
            FLUSH_GRACE,
        );
        Self {
            app,
            stop,
            connections: tokio::spawn(serve),
        }
    }

    /// Ends the service in good order: refuses new requests at once (while still answering them, with a 503), lets
    /// what runs or waits finish, then closes the port. At `limit`, or when `hurry` resolves, what still runs ends with
    /// an error. Returns whether everything was finished.
    pub async fn drain(self, limit: Duration, hurry: impl Future<Output = ()>) -> bool {
        self.app.enter(Phase::Draining);
        let engine = self.app.engine();
        let finished = async {
            if let Some(engine) = &engine {
                engine.drain();
                engine.stopped().await;
            }
        };
        let is_finished = tokio::select! {
            () = finished => true,
            () = sleep(limit) => false,
            () = hurry => false,
        };
        if !is_finished {
            self.app.enter(Phase::Cut);
        }
        let _gone_already = self.stop.send(());
        if let Err(error) = self.connections.await {
            tracing::error!(%error, "the accept loop failed");
        }
        is_finished
    }
}

/// Serves `router` on `listener` until `stop` resolves, then takes no more connections, lets the answers that are
/// being written finish, and returns when all connections are closed or after `grace`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    settings: Settings,
    stop: impl Future<Output = ()>,
    grace: Duration,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(settings.header_deadline)
        .max_headers(MAX_HEADERS)
        .max_header_size(settings.header_bytes)
        .max_buf_size(MAX_BUFFER_BYTES.max(2 * settings.header_bytes));
    let service = TowerToHyperService::new(router);
    let places = Arc::new(Semaphore::new(settings.max_connections));
    let connections = GracefulShutdown::new();

    let accept_all = async {
        loop {
            let socket = match listener.accept().await {
                Ok((socket, _peer)) => socket,
                Err(error) => {
                    // A client that left the queue is no problem of ours; anything else needs time to pass.
                    if error.kind() != ErrorKind::ConnectionAborted {
                        tracing::warn!(%error, "cannot accept connections");
                        sleep(PAUSE_AFTER_FAILED_ACCEPT).await;
                    }
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                refuse(socket);
                continue;
            };
            // Tokens are small packets that should leave at once.
            if let Err(error) = socket.set_nodelay(true) {
                tracing::debug!(%error, "cannot set TCP_NODELAY");
            }
            let io = TokioIo::new(WriteStall::new(socket, settings.write_stall));
            let connection = connections.watch(http.serve_connection(io, service.clone()));
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    // Clients that leave or misbehave: their affair, except when looking for a fault.
                    tracing::debug!(%error, "connection ended early");
                }
                drop(place);
            });
        }
    };
    tokio::select! {
        () = accept_all => {}
        () = stop => {}
    }
    drop(listener);
    if timeout(grace, connections.shutdown()).await.is_err() {
        tracing::warn!("connections were cut off at the end of the grace period");
    }
}

/// Answers one connection too many, as far as that works without waiting for anything.
fn refuse(socket: TcpStream) {
    if let Ok(mut socket) = socket.into_std() {
        let _client_may_be_gone = socket.write(TOO_MANY_CONNECTIONS);
    }
}
