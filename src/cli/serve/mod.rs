//! `microgranite serve`: load a model, answer requests, leave in good order.

mod access;
mod descriptors;
mod limits;
mod load;
mod plan;
mod ready;
mod signals;
mod verify;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime;

use super::WeightsArg;
use crate::config::{self, ByteSize};
use crate::engine::{self, Health};
use crate::error::{Error, Result};
use crate::http::memory;
use crate::http::server::{self, Server};
use crate::http::{App, routes};
use crate::sources::{self, Reference};
use crate::telemetry::Metrics;
use access::AccessArgs;
use limits::LimitArgs;
use load::{Loaded, Prepared};
use signals::StopSignals;
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
    limits: LimitArgs,

    #[command(flatten)]
    access: AccessArgs,
}

/// What is served, and as what.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Model")]
struct ModelArgs {
    /// The model: a folder, a .gguf file, hf:OWNER/NAME[@REVISION][:LABEL], or demo (a small one, fetched once).
    ///
    /// Of a hub repository the safetensors are taken, or else the GGUF file that is best for int8: Q8_0, then floats, then the
    /// most bits. :LABEL takes another, as in hf:OWNER/NAME:Q4_K_M. A model's page on huggingface.co can be named as well.
    #[arg(value_name = "REF")]
    reference: Option<Reference>,

    /// The same as REF, which counts where both are given. [default: demo]
    #[arg(long, env = "MICROGRANITE_MODEL", value_name = "REF")]
    model: Option<Reference>,

    /// The name clients use for the model, or several with commas between them: all are accepted, the first is the one in
    /// answers. [default: the name in REF]
    #[arg(long, env = "MICROGRANITE_SERVED_MODEL_NAME", value_name = "NAME", value_delimiter = ',', value_parser = clap::builder::NonEmptyStringValueParser::new())]
    served_model_name: Vec<String>,

    /// A Jinja file with a chat template, in place of the model's own.
    #[arg(long, env = "MICROGRANITE_CHAT_TEMPLATE", value_name = "FILE")]
    chat_template: Option<PathBuf>,

    #[command(flatten)]
    weights: WeightsArg,

    /// When the weights of a packed model are compared with their checksums. start reads all of them before the service is
    /// ready; background does so slowly while it serves, and again when the file is written to, and stops serving when they
    /// are damaged; off trusts the disk.
    #[arg(
        long,
        env = "MICROGRANITE_VERIFY",
        value_enum,
        value_name = "WHEN",
        default_value_t
    )]
    verify: Verify,
}

impl ModelArgs {
    /// The model.
    fn reference(&self) -> Reference {
        let named = self.reference.clone().or_else(|| self.model.clone());
        named.unwrap_or(Reference::Demo)
    }
}

/// Where requests come in, and how long they may take at the end.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Listening")]
struct ListenArgs {
    /// Where to answer requests. The default can be reached from this machine only; 0.0.0.0:8080 from everywhere.
    #[arg(
        long,
        env = "MICROGRANITE_LISTEN",
        value_name = "ADDR",
        value_parser = config::address,
        default_value = "127.0.0.1:8080"
    )]
    listen: SocketAddr,

    /// Where to answer probes and Prometheus too, on a thread of its own that no load on the API can starve.
    #[arg(long, env = "MICROGRANITE_ADMIN_LISTEN", value_name = "ADDR", value_parser = config::address)]
    admin_listen: Option<SocketAddr>,

    /// What other servers call half of --listen.
    #[arg(long, hide = true, value_name = "HOST", value_parser = part_of_listen)]
    host: Option<String>,

    /// What other servers call the other half.
    #[arg(long, hide = true, value_name = "PORT", value_parser = part_of_listen)]
    port: Option<String>,

    /// Connections at once, 1 to 65536; more are refused with 503. Each needs a file descriptor and its buffers: the limit on
    /// descriptors is raised to what they need, or this number is lowered to the descriptors there are.
    #[arg(long, env = "MICROGRANITE_MAX_CONNECTIONS", value_name = "N", value_parser = config::whole::<1, 65536>, default_value_t = server::Settings::default().max_connections)]
    max_connections: usize,

    /// How long a connection may be idle between requests, in seconds, at most a day. Keep it above the idle time of the
    /// proxies and clients that reuse connections, or they lose a request now and then; less frees connections sooner.
    #[arg(long, env = "MICROGRANITE_KEEP_ALIVE", value_name = "SECS", default_value = "75", value_parser = config::seconds)]
    keep_alive: Duration,

    /// After SIGTERM, how long running answers may take to finish, in seconds, at most a day. Keep the pod's grace period
    /// ten seconds above it: whatever hangs then is left behind.
    #[arg(long, env = "MICROGRANITE_DRAIN_TIMEOUT", value_name = "SECS", default_value = "120", value_parser = config::seconds)]
    drain_timeout: Duration,
}

/// Says how to write what other servers have two flags for.
fn part_of_listen(_: &str) -> std::result::Result<String, String> {
    Err("write both as --listen HOST:PORT".to_owned())
}

/// What runs at once, and in how much memory.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Batching and memory")]
struct BatchArgs {
    /// Compute threads. More than the cores there are would make everything slower, so no more are started; fewer leaves
    /// cores to others. [default: the cores, or the cgroup's quota]
    #[arg(long, env = "MICROGRANITE_THREADS", value_name = "N", value_parser = config::thread_count)]
    threads: Option<usize>,

    /// Answers that are generated at once, 1 to 1024. More raises throughput, and the time between tokens of each.
    #[arg(long, env = "MICROGRANITE_MAX_BATCH", value_name = "N", value_parser = config::whole::<1, 1024>, default_value_t = engine::Settings::default().max_batch)]
    max_batch: usize,

    /// Requests that may wait, 0 to 65536; more are refused with 429. A longer queue refuses fewer and makes them wait
    /// longer.
    #[arg(long, env = "MICROGRANITE_MAX_QUEUE", value_name = "N", value_parser = config::whole::<0, 65536>, default_value_t = engine::Settings::default().max_queue)]
    max_queue: usize,

    /// Longest prompt and answer together, in tokens. Less keeps single requests from taking the whole KV cache.
    /// [default: the model's own]
    #[arg(long, env = "MICROGRANITE_CONTEXT", value_name = "N", value_parser = config::tokens)]
    context: Option<usize>,

    /// Memory for the KV cache: 512MiB, 2GiB, 1G or bytes. More lets more and longer answers run at once; when it is used
    /// up the newest answer pauses until there is room again.
    /// [default: 4096 tokens per place in the batch, at most half of the memory left]
    #[arg(long, env = "MICROGRANITE_KV_CACHE", value_name = "SIZE")]
    kv_cache: Option<ByteSize>,

    /// How many times longer than else the next token of a running answer may take while a prompt comes in, 1 to 1000. Less
    /// keeps running answers even; more gives newcomers their first token sooner.
    #[arg(long, env = "MICROGRANITE_MAX_SLOWDOWN", value_name = "FACTOR", value_parser = config::factor, default_value = "3")]
    max_slowdown: f64,

    /// Keep what was computed of a prompt for others that begin alike, as long as the KV cache has room: on or off. The
    /// answers are the same; off hides from clients, by the time an answer takes, what others have asked.
    #[arg(long, env = "MICROGRANITE_PREFIX_CACHE", value_name = "ON|OFF", value_parser = config::on_off, action = clap::ArgAction::Set, default_value = "on")]
    prefix_cache: bool,

    /// Tokens of an answer to guess in a step, from what the prompt and the answer already say, where that is likely to
    /// save time, up to 128; 0 guesses none. The answers are the same; more makes quotes faster, and wrong guesses dearer.
    #[arg(long, env = "MICROGRANITE_SPECULATION", value_name = "N", value_parser = config::whole::<0, 128>, default_value_t = engine::Settings::default().speculation)]
    speculation: usize,
}

/// Threads beside the network's: tokenizing long prompts and loading the model. They compete with the compute threads for
/// the cores, so a few are enough; what waits for one holds no core.
const MAX_BLOCKING_THREADS: usize = 4;
/// Stack of each: a chat template can put lists into lists as often as its steps allow, and writing or dropping the outermost
/// goes down to the innermost. What is not used takes no memory.
const BLOCKING_STACK_BYTES: usize = 64 << 20;

/// Serves until SIGTERM or SIGINT, then drains.
///
/// What can be refused is refused before a port is bound: whoever sees the port open may count on the service.
///
/// # Errors
/// Whatever keeps the service from starting, and [`Error::Internal`] if its engine dies.
pub fn run(mut args: Args, sources: sources::Settings) -> Result<()> {
    let stop_signals = StopSignals::listen(args.listening.drain_timeout)?;
    args.listening.max_connections = descriptors::connections(args.listening.max_connections);
    let has_admin_port = args.listening.admin_listen.is_some();
    let access = args.access.access(has_admin_port)?;
    let limits = args.limits.limits()?;
    let prepared = load::prepare_local(&args, &sources)?;
    let metrics = Arc::new(Metrics::new());
    let app = App::new(Arc::clone(&metrics), access, limits);
    if let Some(address) = args.listening.admin_listen {
        serve_admin(address, app.clone())?;
    }
    // One thread for the network: it only moves bytes, and the cores belong to the compute threads.
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .thread_stack_size(BLOCKING_STACK_BYTES)
        .build()
        .map_err(|problem| Error::Internal(format!("no runtime: {problem}")))?;
    let service = Service {
        args,
        sources,
        metrics,
        app,
        prepared,
    };
    let outcome = runtime.block_on(service.serve(stop_signals));
    // Does not wait for a model that is still being loaded.
    runtime.shutdown_background();
    outcome
}

impl Args {
    /// How connections are kept.
    fn server(&self) -> server::Settings {
        server::Settings {
            max_connections: self.listening.max_connections,
            keep_alive: self.listening.keep_alive,
            header_bytes: self.limits.header_bytes(),
            ..server::Settings::default()
        }
    }

    /// What clients can make this process hold.
    fn clients(&self) -> Result<plan::Clients> {
        let (server, limits) = (self.server(), self.limits.limits()?);
        Ok(plan::Clients {
            connections: match self.listening.admin_listen {
                Some(_) => server.max_connections + descriptors::ADMIN_CONNECTIONS,
                None => server.max_connections,
            },
            connection_bytes: server.connection_bytes(),
            request_bytes: limits.memory_bytes,
            reading_bytes: memory::reading_bytes(limits.body_bytes),
        })
    }
}

/// All that is known before the port is bound.
struct Service {
    args: Args,
    sources: sources::Settings,
    metrics: Arc<Metrics>,
    app: App,
    prepared: Option<Prepared>,
}

impl Service {
    /// The port first, so that it answers 503 while the model loads; then the model; then wait for the end.
    async fn serve(self, mut stop_signals: StopSignals) -> Result<()> {
        let Self { args, app, .. } = &self;
        let (app, drain_timeout) = (app.clone(), args.listening.drain_timeout);
        let needs_key = app.access().keys.is_some();
        tokio::spawn(access::keep_keys(app.clone(), access::hangups()?));
        let listen = args.listening.listen;
        let listener = TcpListener::bind(listen)
            .await
            .map_err(|problem| cannot_listen("--listen", listen, problem))?;
        let address = listener.local_addr().unwrap_or(listen);
        let server = Server::start(listener, app.clone(), args.server());
        tracing::info!(%address, "listening; loading the model");

        let loading = tokio::task::spawn_blocking(move || self.load());
        let Loaded { model, facts } = tokio::select! {
            loaded = loading => loaded.map_err(|panic| Error::Internal(format!("loading: {panic}")))??,
            () = stop_signals.next() => return Ok(()),
        };
        let engine = model.engine.clone();
        let ready = ready::ready_text(address, &model.name, &facts, needs_key);
        app.serve_model(model);
        stop_signals.set_serving();
        ready::show(ready);
        tracing::info!(%address, "ready");

        let engine_died = tokio::select! {
            () = stop_signals.next() => false,
            () = engine.stopped() => true,
        };
        if !engine_died {
            tracing::info!(?drain_timeout, "stopping: finishing what runs");
        }
        // What a stalled step had to do has been answered with an error already.
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
        Ok(())
    }

    /// The model, and a thread that looks after its weights.
    fn load(self) -> Result<Loaded> {
        let Self {
            args,
            sources,
            metrics,
            app,
            prepared,
        } = self;
        let prepared = match prepared {
            Some(prepared) => prepared,
            None => load::prepare(&args, &sources)?,
        };
        let packed = prepared.packed();
        if let (Verify::Start, Some(packed)) = (args.model.verify, &packed) {
            verify::at_start(packed, &sources, &metrics)?;
        }
        let loaded = load::load(&args, prepared, &sources, Arc::clone(&metrics))?;
        if let (Verify::Start | Verify::Background, Some(packed)) = (args.model.verify, packed) {
            let placement = args.model.weights.weights;
            verify::watch(packed, args.model.verify, placement, app, metrics);
        }
        Ok(loaded)
    }
}

/// Answers probes and Prometheus on a thread and a runtime of their own, until the process ends.
fn serve_admin(address: SocketAddr, app: App) -> Result<()> {
    let failed = |problem| cannot_listen("--admin-listen", address, problem);
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let listener = runtime
        .block_on(TcpListener::bind(address))
        .map_err(failed)?;
    let router = routes::admin_router(app);
    let never = std::future::pending();
    let serve = server::serve(
        listener,
        router,
        server::Settings {
            max_connections: descriptors::ADMIN_CONNECTIONS,
            ..server::Settings::default()
        },
        never,
        Duration::ZERO,
    );
    std::thread::Builder::new()
        .name("admin".into())
        .spawn(move || runtime.block_on(serve))
        .map_err(failed)?;
    Ok(())
}

fn cannot_listen(flag: &str, address: SocketAddr, problem: std::io::Error) -> Error {
    Error::Config(format!("{flag} {address}: {problem}"))
}
