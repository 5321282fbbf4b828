//! Connections: how many, how fast they must be, and how they end.
//!
//! An accept loop of our own on hyper, because axum's has no limit on connections, no deadline for headers and none
//! for clients that do not read.

mod accept;
mod connection;
mod exchange;
mod stall;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::CONNECTION;
use axum::http::{HeaderName, HeaderValue, Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::answer_body::AnswerBody;
use super::app::{App, Phase};
use super::routes;
use accept::{Acceptor, Refusals, refuse_at_once};
use connection::{Connection, Deadlines};
use exchange::{Exchange, Exchanges};

/// Limits on connections. The defaults are for a port that strangers can reach.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Connections at once; more are refused.
    pub max_connections: usize,
    /// From the first byte of a request until its whole head has come; a new connection has as long to send that byte.
    pub head_deadline: Duration,
    /// How long a connection may be idle between requests. Clients and proxies that reuse connections should give up on
    /// them earlier than the server does, or a request now and then meets a closing connection and is lost.
    pub keep_alive: Duration,
    /// How long a client may read nothing while there is something to read.
    pub write_stall: Duration,
    /// Bytes of a request's headers; hyper answers 431 to more.
    pub header_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            head_deadline: Duration::from_secs(10),
            // Load balancers keep idle connections for 60 seconds and ask those behind them to keep them longer.
            keep_alive: Duration::from_secs(75),
            write_stall: Duration::from_secs(30),
            // Cookies and tokens of single sign-on stay below this.
            header_bytes: 32 << 10,
        }
    }
}

/// Clients send a dozen headers; proxies add a few. hyper answers 431 to more.
pub const MAX_HEADERS: usize = 64;
/// What hyper buffers of a connection in each direction, unless heads may be longer: enough for a packet train, and
/// little enough for a thousand connections.
const BUFFER_BYTES: usize = 16 << 10;
/// What the kernel is asked to hold of an answer that is not being read; it takes twice as much, its own records
/// included. A stream of 100 tokens per second needs it for half a second; longer answers wait for their reader.
const SEND_BUFFER_BYTES: usize = 16 << 10;
/// The tasks, timers and headers of a connection, and the beginning of a body.
const STATE_BYTES: usize = 32 << 10;
/// How much later an idle connection is closed than clients are told, so that their last request is still on time.
const KEEP_ALIVE_MARGIN: Duration = Duration::from_secs(2);

impl Settings {
    /// The most memory that one connection takes beside the body of its request: what is buffered of its input and
    /// output, here and in the kernel, and its state.
    pub fn connection_bytes(&self) -> usize {
        self.buffer_bytes() + BUFFER_BYTES + 2 * SEND_BUFFER_BYTES + STATE_BYTES
    }

    fn buffer_bytes(&self) -> usize {
        BUFFER_BYTES.max(self.header_bytes)
    }
}

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
            routes::router(app.clone()),
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
    let deadlines = Deadlines {
        head: settings.head_deadline,
        idle: settings.keep_alive + KEEP_ALIVE_MARGIN,
        stall: settings.write_stall,
    };
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        // Our own come first. Without one, hyper would not read between requests until bytes come, and nothing would
        // start ours.
        .header_read_timeout(deadlines.idle + deadlines.head)
        .max_headers(MAX_HEADERS)
        .max_header_size(settings.header_bytes)
        .max_buf_size(settings.buffer_bytes());
    let promise = KeepAlive::new(settings.keep_alive);
    let service = TowerToHyperService::new(router);
    let places = Arc::new(Semaphore::new(settings.max_connections));
    let connections = GracefulShutdown::new();
    let mut acceptor = Acceptor::new(listener);
    let refusals = Refusals::default();

    let accept_all = async {
        loop {
            let socket = match acceptor.accept().await {
                Ok(socket) => socket,
                Err(without_descriptor) => {
                    refuse_at_once(without_descriptor);
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                refusals.refuse(socket);
                continue;
            };
            // On each: a connection that was made before the port had it would not have it from there.
            if let Err(error) = set_socket_send_buffer_size(&socket, SEND_BUFFER_BYTES) {
                tracing::debug!(%error, "cannot set SO_SNDBUF");
            }
            // Tokens are small packets that should leave at once.
            if let Err(error) = socket.set_nodelay(true) {
                tracing::debug!(%error, "cannot set TCP_NODELAY");
            }
            let exchanges = Exchanges::default();
            let io = TokioIo::new(Connection::new(socket, deadlines, exchanges.clone()));
            let (service, promise) = (service.clone(), promise.clone());
            let service = service_fn(move |request| {
                // At once, and not when the answer is first polled: by then hyper has read on.
                let exchange = exchanges.begin();
                answer(request, service.clone(), exchange, promise.clone())
            });
            let connection = connections.watch(http.serve_connection(io, service));
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
    drop(acceptor);
    if timeout(grace, connections.shutdown()).await.is_err() {
        tracing::warn!("connections were cut off at the end of the grace period");
    }
}

/// Answers one request as one exchange of its connection.
async fn answer(
    request: Request<Incoming>,
    service: TowerToHyperService<Router>,
    exchange: Exchange,
    promise: KeepAlive,
) -> Result<Response<AnswerBody<Exchange>>, Infallible> {
    let is_kept = is_kept(&request);
    let mut response = service.call(request).await?;
    if is_kept && !response.headers().contains_key(CONNECTION) {
        promise.add_to(&mut response);
    }
    Ok(response.map(|body| AnswerBody::new(body, exchange)))
}

/// Whether the client means to send another request on the same connection.
fn is_kept(request: &Request<Incoming>) -> bool {
    let mut tokens = request
        .headers()
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| {
            let value = value.to_str().unwrap_or_default();
            value.split(',').map(str::trim)
        });
    match request.version() {
        Version::HTTP_11 => !tokens.any(|token| token.eq_ignore_ascii_case("close")),
        _ => tokens.any(|token| token.eq_ignore_ascii_case("keep-alive")),
    }
}

/// What clients are told about idle connections.
#[derive(Clone)]
struct KeepAlive(HeaderValue);

impl KeepAlive {
    fn new(timeout: Duration) -> Self {
        let value = HeaderValue::try_from(format!("timeout={}", timeout.as_secs()));
        Self(value.expect("digits are valid in a header"))
    }

    fn add_to(&self, response: &mut Response<Body>) {
        let name = HeaderName::from_static("keep-alive");
        response.headers_mut().insert(name, self.0.clone());
    }
}
