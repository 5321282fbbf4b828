//! Connections: their number, their deadlines, and how they are closed.
//!
//! The accept loop is our own and uses hyper directly, because axum's has no limit on connections, no deadline for
//! headers, and none for clients that do not read.

mod accept;
mod connection;
mod exchange;
pub mod handshake;
mod listener;
mod stall;
pub mod tls;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::header::CONNECTION;
use axum::http::{HeaderName, HeaderValue, Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::app::{App, Phase};
use super::attended_body::AttendedBody;
use super::routes;
use accept::{Acceptor, Refusals, refuse_at_once};
use connection::{Connection, Deadlines};
use exchange::{Exchange, Exchanges};
use handshake::Handshakes;
use listener::Bytes;
pub use listener::{Address, Listener};
use tls::{TLS_BYTES, Tls};

/// Limits on connections. The defaults are safe for a public port.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Open connections at once; any more are refused.
    pub max_connections: usize,
    /// From the first byte of a request until its head is complete. A new connection has as long to send its first
    /// byte, and before that for the handshake of TLS.
    pub head_deadline: Duration,
    /// How long a connection may be idle between requests. Clients and proxies that reuse connections should close idle
    /// ones earlier than the server does. Otherwise a request is sometimes sent on a connection that the server is
    /// closing, and is lost.
    pub keep_alive: Duration,
    /// How long a client may read nothing while bytes are waiting for it.
    pub write_stall: Duration,
    /// How long a client that has closed its sending side may go without receiving bytes.
    pub half_closed: Duration,
    /// Bytes of a request's headers; hyper answers 431 to more.
    pub header_bytes: usize,
    /// The settings of TLS; without them the port speaks plain HTTP.
    pub tls: Option<Arc<Tls>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            head_deadline: Duration::from_secs(10),
            // Load balancers keep idle connections for 60 seconds and require servers behind them to keep them longer.
            keep_alive: Duration::from_secs(75),
            write_stall: Duration::from_secs(30),
            // A client that has disconnected looks the same until something is sent to it, and its place should be free
            // within a quarter of a second, of which a step takes more than half.
            half_closed: Duration::from_millis(80),
            // Requests with cookies and single sign-on tokens stay below this.
            header_bytes: 32 << 10,
            tls: None,
        }
    }
}

/// Headers of a request. Clients send a dozen, proxies add a few; hyper answers 431 to more.
pub const MAX_HEADERS: usize = 64;
/// The size of hyper's buffer for each direction of a connection, unless heads may be longer: enough for a burst of
/// packets, and little enough for a thousand connections.
const BUFFER_BYTES: usize = 16 << 10;
/// The kernel's send buffer (`SO_SNDBUF`) of a connection; the kernel doubles it for its own bookkeeping. A stream of
/// 100 tokens per second fills it in half a second; after that, backpressure makes the answer wait for the client.
const SEND_BUFFER_BYTES: usize = 16 << 10;
/// Memory for the task, timers and headers of a connection, and for the beginning of a body.
const STATE_BYTES: usize = 32 << 10;
/// How much later an idle connection is closed than the `Keep-Alive` header says, so that a client's last request still
/// arrives in time.
const KEEP_ALIVE_MARGIN: Duration = Duration::from_secs(2);

impl Settings {
    /// The most memory that one connection takes beside the body of its request: its input and output buffers, here and
    /// in the kernel, and its state.
    pub fn connection_bytes(&self) -> usize {
        let tls = self.tls.as_ref().map_or(0, |_| TLS_BYTES);
        self.buffer_bytes() + BUFFER_BYTES + 2 * SEND_BUFFER_BYTES + STATE_BYTES + tls
    }

    fn buffer_bytes(&self) -> usize {
        BUFFER_BYTES.max(self.header_bytes)
    }
}

/// A running server: the application on its port, until it is drained.
pub struct Server {
    app: App,
    stop: oneshot::Sender<()>,
    connections: JoinHandle<()>,
}

/// Time for the last bytes of complete responses to reach slow clients.
const FLUSH_GRACE: Duration = Duration::from_secs(5);

impl Server {
    /// Starts serving `app` on `listener`, in the caller's runtime.
    pub fn start(listener: impl Into<Listener>, app: App, settings: Settings) -> Self {
        let (stop, stopped) = oneshot::channel();
        let stopped = async {
            // An error means that the server was dropped, which stops it too.
            let _ = stopped.await;
        };
        let serve = serve(
            listener.into(),
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

    /// Shuts down gracefully: answers new requests with 503 from now on, lets running and waiting ones finish, then
    /// closes the port. After `limit`, or when `hurry` resolves, requests that still run end with an error. Returns
    /// whether all were finished.
    pub async fn drain(self, limit: Duration, hurry: impl Future<Output = ()>) -> bool {
        self.app.enter(Phase::Draining);
        let engine = self.app.engine();
        let finished = async {
            self.app.handed_over().await;
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
            if let Some(engine) = &engine {
                engine.drain();
            }
        }
        let _gone_already = self.stop.send(());
        if let Err(error) = self.connections.await {
            tracing::error!(%error, "the accept loop failed");
        }
        is_finished
    }
}

/// How long to wait for the place of a handshake that was ended.
const DISPLACING_TIME: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `stop` resolves. Then it accepts no more connections, lets responses that are
/// being written finish, and returns when all connections are closed, or after `grace`.
pub async fn serve(
    listener: Listener,
    router: Router,
    settings: Settings,
    stop: impl Future<Output = ()>,
    grace: Duration,
) {
    let places = Arc::new(Semaphore::new(settings.max_connections));
    let connections = GracefulShutdown::new();
    let mut acceptor = Acceptor::new(listener);
    let refusals = Refusals::default();
    let max_connections = settings.max_connections;
    let tls = settings.tls.clone();
    let mut handshakes = tls.map(|tls| Handshakes::new(tls, max_connections));
    let head_deadline = settings.head_deadline;
    let host = Host::new(router, &settings);

    let accept_all = async {
        loop {
            let socket = match acceptor.accept().await {
                Ok(socket) => socket,
                Err(without_descriptor) => {
                    // A refusal in plain text would be no answer to a client that expects TLS.
                    if handshakes.is_none() {
                        refuse_at_once(without_descriptor);
                    }
                    continue;
                }
            };
            let mut place = Arc::clone(&places).try_acquire_owned().ok();
            if place.is_none() && handshakes.as_mut().is_some_and(Handshakes::displace) {
                let free = timeout(DISPLACING_TIME, Arc::clone(&places).acquire_owned()).await;
                place = free.ok().and_then(Result::ok);
            }
            let Some(place) = place else {
                if handshakes.is_none() {
                    refusals.refuse(socket);
                }
                continue;
            };
            // Set on each connection: set on the listener, it would not apply to connections that were made before.
            socket.configure(SEND_BUFFER_BYTES);
            let (host, watcher) = (host.clone(), connections.watcher());
            let Some(handshakes) = &mut handshakes else {
                tokio::spawn(host.serve(socket.into_bytes(), watcher, place));
                continue;
            };
            let (tls, refusals) = (Arc::clone(handshakes.tls()), refusals.clone());
            let deadline = Instant::now() + head_deadline;
            let handshake = tokio::spawn(async move {
                let shaken = handshake::shake(&tls, socket, deadline, &refusals).await;
                if let Some(bytes) = shaken {
                    // A task of its own, which is not ended together with the handshakes.
                    tokio::spawn(host.serve(bytes, watcher, place));
                }
            });
            handshakes.add(handshake.abort_handle());
        }
    };
    tokio::select! {
        () = accept_all => {}
        () = stop => {}
    }
    drop(acceptor);
    drop(handshakes);
    if timeout(grace, connections.shutdown()).await.is_err() {
        tracing::warn!("connections were cut off at the end of the grace period");
    }
}

/// What every connection is served with.
#[derive(Clone)]
struct Host {
    http: http1::Builder,
    service: TowerToHyperService<Router>,
    promise: KeepAlive,
    deadlines: Deadlines,
}

impl Host {
    fn new(router: Router, settings: &Settings) -> Self {
        let deadlines = Deadlines {
            head: settings.head_deadline,
            idle: settings.keep_alive + KEEP_ALIVE_MARGIN,
            stall: settings.write_stall,
            half_closed: settings.half_closed,
        };
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            // The deadlines of [`Connection`] expire before this one. It must be set all the same: without it, hyper
            // would not poll the connection between requests until bytes arrive, and our deadlines would never start.
            .header_read_timeout(deadlines.idle + deadlines.head)
            .max_headers(MAX_HEADERS)
            .max_header_size(settings.header_bytes)
            .max_buf_size(settings.buffer_bytes());
        Self {
            http,
            service: TowerToHyperService::new(router),
            promise: KeepAlive::new(settings.keep_alive),
            deadlines,
        }
    }

    /// Serves one connection, which holds its place among the connections until it is closed.
    async fn serve(self, bytes: Box<dyn Bytes>, watcher: Watcher, place: OwnedSemaphorePermit) {
        let Self {
            http,
            service,
            promise,
            deadlines,
        } = self;
        let exchanges = Exchanges::default();
        let io = TokioIo::new(Connection::new(bytes, deadlines, exchanges.clone()));
        let service = service_fn(move |request: Request<Incoming>| {
            // Begun here and not when the future is first polled, because hyper has read again by then.
            let exchange = exchanges.begin(!request.body().is_end_stream());
            answer(request, service.clone(), exchange, promise.clone())
        });
        let connection = watcher.watch(http.serve_connection(io, service));
        if let Err(error) = connection.await {
            // Clients that disconnect or misbehave are not the server's faults, so this is for debugging only.
            tracing::debug!(%error, "connection ended early");
        }
        drop(place);
    }
}

/// Answers one request as one exchange of its connection.
async fn answer(
    request: Request<Incoming>,
    service: TowerToHyperService<Router>,
    exchange: Exchange,
    promise: KeepAlive,
) -> Result<Response<AttendedBody<Exchange>>, Infallible> {
    let is_kept = is_kept(&request);
    let reading = exchange.reading();
    let request = request.map(|body| AttendedBody::new(Body::new(body), reading));
    let mut response = service.call(request).await?;
    if is_kept && !response.headers().contains_key(CONNECTION) {
        promise.add_to(&mut response);
    }
    Ok(response.map(|body| AttendedBody::new(body, exchange)))
}

/// Whether the client wants to keep the connection open for another request.
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

/// The `Keep-Alive` header, which tells clients how long a connection may be idle.
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
