//! `microgranite serve`: loads a model, answers requests, and shuts down gracefully.

mod access;
pub(super) mod descriptors;
pub(super) mod generation;
pub(super) mod here;
mod limits;
mod listening;
mod load;
mod notify;
pub(super) mod plan;
mod ready;
mod signals;
mod tls;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{self, Runtime};

use super::WeightsArg;
use super::signature::SignatureArgs;
use crate::config::{self, ByteSize};
use crate::engine::{self, Health};
use crate::error::{Error, Result};
use crate::http::app::App;
use crate::http::routes;
use crate::http::server::tls::Tls;
use crate::http::server::{self, Address, Server};
use crate::memory::{self as machine, accounts::Accounts};
use crate::sources::{self, Reference};
use crate::telemetry::otlp::Exporter;
use crate::telemetry::{Aliases, Metrics};
use access::{AccessArgs, KeptFiles};
use generation::GenerationArgs;
use limits::LimitArgs;
use listening::{Open, Passed, PassedSocket, SocketFile, SocketMode, check_distinct};
use load::{Loaded, Prepared};
use notify::{Manager, Message};
use plan::{ClientSizes, Clients, GivenSizes};
use ready::Ready;
use signals::StopSignals;
use tls::TlsArgs;
use verify::Verify;

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

/// The model to serve, and its name.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Model")]
struct ModelArgs {
    /// The model: a folder, a .gguf file, hf:OWNER/NAME[@REVISION][:LABEL], ollama:NAME[:TAG],
    /// oci://HOST/REPOSITORY[:TAG], or demo (a small model, downloaded once).
    ///
    /// For a hub repository, its safetensors are used, or else the GGUF file that is best for int8: Q8_0, then floats,
    /// then the most bits. :LABEL selects another, as in hf:OWNER/NAME:Q4_K_M. The address of a model's page on
    /// huggingface.co works too.
    #[arg(value_name = "REF")]
    reference: Option<Reference>,

    /// The same as REF, which takes precedence. [default: demo]
    #[arg(long, env = "MICROGRANITE_MODEL", value_name = "REF")]
    model: Option<Reference>,

    /// The name that clients use for the model, or several, separated by commas: all are accepted, and responses
    /// contain the first. [default: the name in REF]
    #[arg(long, env = "MICROGRANITE_SERVED_MODEL_NAME", value_name = "NAME", value_delimiter = ',', value_parser = clap::builder::NonEmptyStringValueParser::new())]
    served_model_name: Vec<String>,

    /// A Jinja file with a chat template, which replaces the model's own.
    #[arg(long, env = "MICROGRANITE_CHAT_TEMPLATE", value_name = "FILE")]
    chat_template: Option<PathBuf>,

    /// A file that verify-savings has written for this model. What it measured is shown in /v1/models and in the metrics.
    /// [default: the one in a packed model's folder, if there is one]
    #[arg(long, env = "MICROGRANITE_SAVINGS", value_name = "FILE")]
    savings: Option<PathBuf>,

    #[command(flatten)]
    weights: WeightsArg,

    /// When to verify the weights of a packed model against their checksums. start reads all of them before the service
    /// is ready. background does so slowly while serving, again after every write to the file, and stops answering if
    /// they are damaged. off trusts the disk.
    #[arg(
        long,
        env = "MICROGRANITE_VERIFY",
        value_enum,
        value_name = "WHEN",
        default_value_t
    )]
    verify: Verify,

    #[command(flatten)]
    signature: SignatureArgs,
}

impl ModelArgs {
    /// The model.
    fn reference(&self) -> Reference {
        let named = self.reference.clone().or_else(|| self.model.clone());
        named.unwrap_or(Reference::Demo)
    }
}

/// Where the server listens, and how it keeps and ends connections.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Listening")]
struct ListenArgs {
    /// The address of the API. The default can only be reached from this machine; 0.0.0.0:8080 can be reached from
    /// everywhere; unix:PATH is a Unix socket. A socket that systemd passes takes its place.
    #[arg(
        long,
        env = "MICROGRANITE_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:8080"
    )]
    listen: Address,

    /// A second address for probes and Prometheus, served by a separate thread that load on the API cannot starve.
    #[arg(long, env = "MICROGRANITE_ADMIN_LISTEN", value_name = "ADDR")]
    admin_listen: Option<Address>,

    /// The permissions of Unix sockets, in octal: who may write to them may connect.
    #[arg(long, env = "MICROGRANITE_SOCKET_MODE", value_name = "MODE", value_parser = listening::socket_mode, default_value = "660")]
    socket_mode: SocketMode,

    /// Half of --listen, as other servers have it.
    #[arg(long, hide = true, value_name = "HOST", value_parser = part_of_listen)]
    host: Option<String>,

    /// The other half.
    #[arg(long, hide = true, value_name = "PORT", value_parser = part_of_listen)]
    port: Option<String>,

    /// Concurrent connections, 1 to 65536; more are refused with 503. Each needs a file descriptor and buffers: the soft limit
    /// on descriptors is raised as needed, or this number is lowered to what the hard limit allows.
    /// [default: 1024, or fewer where the process may use less than 4 GiB]
    #[arg(long, env = "MICROGRANITE_MAX_CONNECTIONS", value_name = "N", value_parser = config::whole::<1, 65536>)]
    max_connections: Option<usize>,

    /// How long a connection may be idle between requests, in seconds, at most a day. Keep it above the idle timeout of
    /// proxies and clients that reuse connections, or they occasionally lose a request. Less frees connections sooner.
    #[arg(long, env = "MICROGRANITE_KEEP_ALIVE", value_name = "SECS", default_value = "75", value_parser = config::seconds)]
    keep_alive: Duration,

    /// How long running answers may take to finish after SIGTERM, in seconds, at most a day. Keep the pod's grace
    /// period ten seconds longer, so that the process can exit even if something hangs.
    #[arg(long, env = "MICROGRANITE_DRAIN_TIMEOUT", value_name = "SECS", default_value = "120", value_parser = config::seconds)]
    drain_timeout: Duration,
}

/// Parses a time for first tokens. Less than a tenth of a second is below what any step takes on a busy machine.
fn target(text: &str) -> std::result::Result<Duration, String> {
    let seconds = text.strip_suffix('s').unwrap_or(text).parse().ok();
    let seconds = seconds.filter(|seconds| (0.1..=86_400.0).contains(seconds));
    let seconds = seconds.ok_or("write seconds from 0.1 to 86400, such as 2 or 0.5")?;
    Ok(Duration::from_secs_f64(seconds))
}

/// The error for the two flags that other servers have instead of --listen.
fn part_of_listen(_: &str) -> std::result::Result<String, String> {
    Err("write both as --listen HOST:PORT".to_owned())
}

/// How much runs at once, and in how much memory.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Batching and memory")]
struct BatchArgs {
    /// Compute threads, at most one per available core, because more would slow everything down. Fewer leave cores to
    /// other programs. [default: the number of cores, or the cgroup's CPU quota]
    #[arg(long, env = "MICROGRANITE_THREADS", value_name = "N", value_parser = config::thread_count)]
    threads: Option<usize>,

    /// Answers to generate at once, 1 to 1024. More increase the total throughput, and the time per token of each
    /// answer. A model with Mamba-2 layers reserves memory for two states of fixed size for each.
    #[arg(long, env = "MICROGRANITE_MAX_BATCH", value_name = "N", value_parser = config::whole::<1, 1024>, default_value_t = engine::Settings::default().max_batch)]
    max_batch: usize,

    /// Requests that may wait for a batch slot, 0 to 65536; more are refused with 429. A longer queue refuses fewer
    /// requests but makes them wait longer.
    #[arg(long, env = "MICROGRANITE_MAX_QUEUE", value_name = "N", value_parser = config::whole::<0, 65536>, default_value_t = engine::Settings::default().max_queue)]
    max_queue: usize,

    /// Tokens that the prompts of waiting requests may have together, 1 to 16777216; more are refused with 429. A prompt that
    /// waits alone may have more. With several API keys, one key takes at most half of what is free in the queue.
    #[arg(long, env = "MICROGRANITE_MAX_QUEUE_TOKENS", value_name = "N", value_parser = config::whole::<1, 16_777_216>, default_value_t = engine::Settings::default().max_queue_tokens)]
    max_queue_tokens: usize,

    /// Seconds within which a request should get its first token, 0.1 to 86400: one that would wait longer by the measured
    /// rates is refused with 429 and the time after which it would not. [default: wait as long as the queue takes]
    #[arg(long, env = "MICROGRANITE_TARGET_TTFT", value_name = "SECS", value_parser = target)]
    target_ttft: Option<Duration>,

    /// Largest length of prompt and answer together, in tokens. A lower limit keeps single requests from using the
    /// whole KV cache. [default: the model's own]
    #[arg(long, env = "MICROGRANITE_CONTEXT", value_name = "N", value_parser = config::tokens)]
    context: Option<usize>,

    /// Memory for the KV cache: 512MiB, 2GiB, 1G or bytes. More lets more and longer answers run at once; when it is
    /// full, the newest answer pauses until there is room again. [default: 4096 tokens per batch slot, at most half of
    /// the free memory]
    #[arg(long, env = "MICROGRANITE_KV_CACHE", value_name = "SIZE")]
    kv_cache: Option<ByteSize>,

    /// Memory for snapshots of the states of recurrent models (Granite 4.0's h- models): 512MiB, 2GiB, 1G or bytes. A
    /// later prompt that begins like an earlier one can only go on from a snapshot, so more lets more conversations go on
    /// without being computed again. Other models need none. [default: one per batch slot, at most a quarter of the free
    /// memory]
    #[arg(long, env = "MICROGRANITE_STATE_CACHE", value_name = "SIZE")]
    state_cache: Option<ByteSize>,

    /// How much running answers may slow down while new prompts are processed: the time per token grows by at most this
    /// factor, 1 to 1000. Less keeps running answers steady; more gives new requests their first token sooner.
    #[arg(long, env = "MICROGRANITE_MAX_SLOWDOWN", value_name = "FACTOR", value_parser = config::factor, default_value = "3")]
    max_slowdown: f64,

    /// Reuse the computed beginning of prompts for later prompts with the same beginning, as long as the KV cache has
    /// room: on or off. The answers are the same. Response times reveal whether another client has sent the same
    /// beginning; off prevents that.
    #[arg(long, env = "MICROGRANITE_PREFIX_CACHE", value_name = "ON|OFF", value_parser = config::on_off, action = clap::ArgAction::Set, default_value = "on")]
    prefix_cache: bool,

    /// Draft tokens per answer and step, copied from repetitions in the prompt and answer where that is likely to save
    /// time, up to 128; 0 turns drafting off. The answers are the same. More speed up quotations, but wrong drafts cost
    /// more.
    #[arg(long, env = "MICROGRANITE_SPECULATION", value_name = "N", value_parser = config::whole::<0, 128>, default_value_t = engine::Settings::default().speculation)]
    speculation: usize,
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
    let prepared = load::prepare_local(&args, &sources, args.clients(sizes, &held))?;
    let exporter = match &args.otlp_endpoint {
        Some(url) => Some(exporter(url, &metrics)?),
        None => None,
    };
    let app = App::traced(Arc::clone(&metrics), access, limits, exporter.clone());
    let _admin_file = serve_admin(&args, admin, app.clone(), tls)?;
    let runtime = runtime()?;
    let service = Service {
        args,
        sources,
        metrics,
        app,
        prepared,
        sizes,
        held,
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
#[derive(Clone)]
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

/// Everything that is prepared before the port is bound.
struct Service {
    args: Args,
    sources: sources::Settings,
    metrics: Arc<Metrics>,
    app: App,
    prepared: Option<Prepared>,
    sizes: ClientSizes,
    held: Held,
    /// The socket of the API, if it was passed.
    passed: Option<PassedSocket>,
    manager: Manager,
    /// When the command began.
    began: Instant,
}

impl Service {
    /// Binds the port first, so that it answers 503 while the model loads; then loads the model; then waits for the
    /// end.
    async fn serve(mut self, mut stop_signals: StopSignals) -> Result<()> {
        let (passed, manager) = (self.passed.take(), self.manager.clone());
        let Self {
            args, app, held, ..
        } = &self;
        let (app, drain_timeout) = (app.clone(), args.listening.drain_timeout);
        let (needs_key, is_tls) = (app.access().keys.is_some(), held.tls.is_some());
        let files = KeptFiles {
            app: app.clone(),
            tls: held.tls.clone(),
            manager: manager.clone(),
        };
        tokio::spawn(files.keep(access::hangups()?));
        tokio::spawn(manager.clone().keep_alive(app.clone()));
        let (listen, mode) = (&args.listening.listen, args.listening.socket_mode);
        let Open { listener, file } = match passed {
            Some(passed) => passed.open()?,
            None => listening::open("--listen", listen, mode)?,
        };
        let address = listener.address().unwrap_or_else(|_| listen.clone());
        let server = Server::start(listener, app.clone(), args.server(self.sizes, held));
        let (began, metrics) = (self.began, Arc::clone(&self.metrics));
        tracing::info!(%address, "listening; loading the model");
        manager.tell(Message::Status("loading the model".to_owned()));

        let loading = tokio::task::spawn_blocking(move || self.load());
        let Loaded { model, facts, .. } = tokio::select! {
            loaded = loading => loaded.map_err(|panic| Error::Internal(format!("loading: {panic}")))??,
            () = stop_signals.next() => return Ok(()),
        };
        let engine = model.engine.clone();
        let serving = format!("serving {} on {address}", model.name);
        let ready = Ready {
            address: &address,
            is_tls,
            needs_key,
        };
        let ready = ready.text(&model.name, &facts);
        app.serve_model(model);
        metrics.set_startup("total", began.elapsed());
        stop_signals.set_serving();
        ready::show(ready);
        tracing::info!(%address, "ready");
        manager.tell(Message::Ready(serving));

        let engine_died = tokio::select! {
            () = stop_signals.next() => false,
            () = engine.stopped() => true,
        };
        if !engine_died {
            tracing::info!(?drain_timeout, "stopping: finishing what runs");
        }
        manager.tell(Message::Stopping("finishing what runs".to_owned()));
        // The requests of a stalled step have already been answered with an error.
        let hurry = async {
            tokio::select! {
                () = stop_signals.next() => {}
                () = app.stalled() => {}
            }
        };
        let is_finished = server.drain(drain_timeout, hurry).await;
        if engine.health() == Health::Failed {
            let cause = "the engine died; the log has the cause";
            return Err(Error::Internal(cause.to_owned()));
        }
        if !is_finished {
            tracing::warn!("stopped before all answers were complete");
        }
        // Until here, so that the socket is there as long as somebody listens on it.
        drop(file);
        Ok(())
    }

    /// Loads the model and starts a thread that verifies its weights.
    fn load(self) -> Result<Loaded> {
        let Self {
            args,
            sources,
            metrics,
            app,
            prepared,
            sizes,
            held,
            ..
        } = self;
        let prepared = match prepared {
            Some(prepared) => prepared,
            None => load::prepare(&args, &sources, args.clients(sizes, &held))?,
        };
        let packed = prepared.packed();
        if let (Verify::Start, Some(packed)) = (args.model.verify, &packed) {
            let began = Instant::now();
            verify::at_start(packed, &sources, &metrics)?;
            metrics.set_startup("verify", began.elapsed());
        }
        let loaded = load::load(&args, prepared, &sources, Arc::clone(&metrics))?;
        // Here, because what only loading needed is gone.
        metrics.memory().set_accounts(Accounts {
            ready: load::allocated(),
            ..loaded.accounts.clone()
        });
        if let (Verify::Start | Verify::Background, Some(packed)) = (args.model.verify, packed) {
            let placement = args.model.weights.weights;
            verify::watch(packed, args.model.verify, placement, app, metrics);
        }
        Ok(loaded)
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
