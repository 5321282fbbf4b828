//! `microgranite serve`: loads a model, answers requests, and shuts down gracefully.

mod access;
mod args;
mod canary;
pub(super) mod descriptors;
pub(super) mod generation;
pub(super) mod here;
mod limits;
mod listening;
mod load;
mod notify;
pub(super) mod plan;
mod prepare;
mod ready;
mod service;
mod signals;
mod tls;
mod verify;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{self, Runtime};

use crate::config::{self, ByteSize};
use crate::error::{Error, Result};
use crate::http::app::App;
use crate::http::routes;
use crate::http::server::tls::Tls;
use crate::http::server::{self, Address};
use crate::memory as machine;
use crate::sources;
use crate::telemetry::otlp::Exporter;
use crate::telemetry::{Aliases, Metrics};
use access::AccessArgs;
use args::{BatchArgs, ListenArgs, ModelArgs};
use generation::GenerationArgs;
use limits::LimitArgs;
use listening::{Open, Passed, PassedSocket, SocketFile, check_distinct};
use notify::Manager;
use plan::{ClientSizes, Clients, GivenSizes};
use service::{Loading, Service};
use signals::StopSignals;
use tls::TlsArgs;

/// Serve a model over POST /v1/completions and /v1/chat/completions.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    listening: ListenArgs,

    #[command(flatten)]
    batching: BatchArgs,

    #[command(flatten)]
    generation: GenerationArgs,

    #[command(flatten)]
    limits: LimitArgs,

    #[command(flatten)]
    access: AccessArgs,

    #[command(flatten)]
    tls: TlsArgs,

    /// The address of an OpenTelemetry collector that takes OTLP over HTTP, such as http://127.0.0.1:4318: it gets the spans
    /// of every request, without any text of prompts and answers. The path /v1/traces is added if there is none.
    #[arg(long, help_heading = "Logging", env = "MICROGRANITE_OTLP_ENDPOINT", value_name = "URL", value_parser = config::collector)]
    otlp_endpoint: Option<String>,

    /// Show metrics under the names of another server as well, so that its dashboards, autoscaling rules and routers work
    /// unchanged. A scrape is longer by a third.
    #[arg(
        long,
        help_heading = "Metrics",
        env = "MICROGRANITE_METRICS_ALIASES",
        value_enum,
        value_name = "SERVER"
    )]
    metrics_aliases: Option<Aliases>,
}

/// Threads besides the network's, for tokenizing long prompts and loading the model. They compete with the compute
/// threads for the cores, so a few are enough; what waits for one uses no core.
const MAX_BLOCKING_THREADS: usize = 4;
/// Stack size of each: a chat template can nest lists as deep as its step limit allows, and printing or dropping the
/// outermost list recurses to the innermost. Unused stack takes no memory.
const BLOCKING_STACK_BYTES: usize = 64 << 20;

/// Serves until SIGTERM or SIGINT, then drains.
///
/// Errors that can be found early are reported before a port is bound: once the port is open, clients may rely on the
/// service.
///
/// # Errors
/// Every error that keeps the service from starting, and [`Error::Internal`] if its engine dies.
pub fn run(args: Args, sources: sources::Settings) -> Result<()> {
    // First of all, because it changes the environment, and other threads would make that unsound.
    let Passed { api, admin } = Passed::take()?;
    let began = Instant::now();
    let manager = Manager::of_environment();
    let stop_signals = StopSignals::listen(args.listening.drain_timeout)?;
    let metrics = Arc::new(Metrics::with_aliases(args.metrics_aliases));
    let tls = args.tls.read(&metrics)?;
    // Read again when the model is there; a file that cannot be used is reported before that.
    args.model.signature.key()?;
    let listening = &args.listening;
    let is_tcp = match &api {
        Some(passed) => passed.is_tcp(),
        None => matches!(listening.listen, Address::Tcp(_)),
    };
    if tls.is_some() && !is_tcp {
        let problem = "--tls-cert: the API listens on a Unix socket, which has no TLS";
        return Err(Error::Usage(problem.to_owned()));
    }
    let has_admin_port = admin.is_some() || listening.admin_listen.is_some();
    let held = Held {
        tls: tls.clone(),
        has_admin_port,
    };
    let sizes = args.client_sizes(&held);
    let access = args.access.access(has_admin_port)?;
    let limits = args.limits.limits(sizes)?;
    let clients = args.clients(sizes, &held);
    let connections = args.server(sizes, &held);
    let prepared = prepare::prepare_local(&args, &sources, clients)?;
    let exporter = match &args.otlp_endpoint {
        Some(url) => Some(exporter(url, &metrics)?),
        None => None,
    };
    let app = App::traced(metrics, access, limits, exporter.clone());
    let _admin_file = serve_admin(&args, admin, app.clone(), tls)?;
    let runtime = runtime()?;
    let service = Service {
        loading: Loading {
            args,
            sources,
            app,
            prepared,
            clients,
        },
        connections,
        passed: api,
        manager: manager.clone(),
        began,
    };
    let outcome = runtime.block_on(service.serve(stop_signals));
    // This does not wait for a model that is still loading.
    runtime.shutdown_background();
    manager.flush(LAST_NOTICE);
    if let Some(exporter) = exporter {
        exporter.flush(LAST_SPANS);
    }
    outcome
}

/// What runs the application: one thread for the network, because it only moves bytes and the cores belong to the compute
/// threads.
///
/// # Errors
/// [`Error::Internal`] if the system refuses it.
pub(super) fn runtime() -> Result<Runtime> {
    runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .thread_stack_size(BLOCKING_STACK_BYTES)
        .build()
        .map_err(|problem| Error::Internal(format!("no runtime: {problem}")))
}

/// How long the service manager and the collector may keep the process from ending. Together with the last bytes of
/// responses and the last lines of the log, that is less than the time after which a process counts as hanging.
const LAST_NOTICE: Duration = Duration::from_millis(500);
const LAST_SPANS: Duration = Duration::from_secs(1);

fn exporter(url: &str, metrics: &Metrics) -> Result<Exporter> {
    let exporter = Exporter::start(url.to_owned(), metrics);
    exporter.map_err(|problem| Error::Internal(format!("no thread for spans: {problem}")))
}

/// What connections take, beside what the flags say.
struct Held {
    /// The settings of TLS of the API's port.
    tls: Option<Arc<Tls>>,
    /// Whether there is a second port.
    has_admin_port: bool,
}

impl Args {
    /// Limits on what clients may send and hold: those that the operator gave, or defaults that suit the memory of this
    /// process. Connections are limited by the file descriptors as well.
    fn client_sizes(&self, held: &Held) -> ClientSizes {
        let given = GivenSizes {
            connections: self.listening.max_connections,
            ..self.limits.given_sizes()
        };
        let limit = machine::limit();
        let connection_bytes = self.connection_settings(held).connection_bytes();
        let mut sizes = ClientSizes::new(given, connection_bytes, limit.as_ref());
        if let Some(limit) = limit.filter(|_| sizes != ClientSizes::new(given, 0, None)) {
            let (memory, source) = (ByteSize(limit.bytes), limit.source);
            let (body, requests) = (sizes.body_bytes as u64, sizes.request_bytes as u64);
            tracing::info!(
                max_body = %ByteSize(body),
                max_request_memory = %ByteSize(requests),
                max_connections = sizes.connections,
                "smaller defaults, since this process may use no more than {memory} ({source})"
            );
        }
        sizes.connections = descriptors::connections(sizes.connections);
        sizes
    }

    /// How connections are kept, with as many as by default.
    fn connection_settings(&self, held: &Held) -> server::Settings {
        server::Settings {
            tls: held.tls.clone(),
            keep_alive: self.listening.keep_alive,
            header_bytes: self.limits.header_bytes(),
            ..server::Settings::default()
        }
    }

    /// How connections are kept.
    fn server(&self, sizes: ClientSizes, held: &Held) -> server::Settings {
        server::Settings {
            max_connections: sizes.connections,
            ..self.connection_settings(held)
        }
    }

    /// What clients can make this process hold.
    fn clients(&self, sizes: ClientSizes, held: &Held) -> Clients {
        let clients = sizes.clients(self.connection_settings(held).connection_bytes());
        match held.has_admin_port {
            true => Clients {
                connections: clients.connections + descriptors::ADMIN_CONNECTIONS,
                ..clients
            },
            false => clients,
        }
    }
}

/// Answers probes and Prometheus on a separate thread and runtime, until the process ends, if there is an admin port.
/// Returns the file of its socket, which is to be kept until then.
fn serve_admin(
    args: &Args,
    passed: Option<PassedSocket>,
    app: App,
    tls: Option<Arc<Tls>>,
) -> Result<Option<SocketFile>> {
    let listening = &args.listening;
    if passed.is_none() && listening.admin_listen.is_none() {
        return Ok(None);
    }
    let failed = |problem| Error::Config(format!("--admin-listen: {problem}"));
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let context = runtime.enter();
    let Open { listener, file } = match (passed, &listening.admin_listen) {
        (Some(passed), _) => passed.open()?,
        (None, Some(address)) => {
            check_distinct(&listening.listen, address)?;
            listening::open("--admin-listen", address, listening.socket_mode)?
        }
        (None, None) => return Ok(None),
    };
    drop(context);
    let settings = server::Settings {
        max_connections: descriptors::ADMIN_CONNECTIONS,
        tls: tls.filter(|_| args.tls.is_on_for_admin()),
        ..server::Settings::default()
    };
    let router = routes::admin_router(app);
    let never = std::future::pending();
    let serve = server::serve(listener, router, settings, never, Duration::ZERO);
    std::thread::Builder::new()
        .name("admin".into())
        .spawn(move || runtime.block_on(serve))
        .map_err(failed)?;
    Ok(file)
}
