//! The flags of `microgranite serve` about the model, where it listens, and how much runs at once.

use std::path::PathBuf;
use std::time::Duration;

use super::listening::{self, SocketMode};
use super::verify::Verify;
use crate::cli::WeightsArg;
use crate::cli::signature::SignatureArgs;
use crate::config::{self, ByteSize};
use crate::engine;
use crate::http::server::Address;
use crate::sources::Reference;

/// The model to serve, and its name.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Model")]
pub(super) struct ModelArgs {
    /// The model: a folder, a .gguf file, hf:OWNER/NAME[@REVISION][:LABEL], ollama:NAME[:TAG],
    /// oci://HOST/REPOSITORY[:TAG], or demo (a small model, downloaded once).
    ///
    /// For a hub repository, its safetensors are used, or else the GGUF file that is best for int8: Q8_0, then floats,
    /// then the most bits. :LABEL selects another, as in hf:OWNER/NAME:Q4_K_M. The address of a model's page on
    /// huggingface.co works too.
    #[arg(value_name = "REF")]
    pub(super) reference: Option<Reference>,

    /// The same as REF, which takes precedence. [default: demo]
    #[arg(long, env = "MICROGRANITE_MODEL", value_name = "REF")]
    pub(super) model: Option<Reference>,

    /// The name that clients use for the model, or several, separated by commas: all are accepted, and responses
    /// contain the first. [default: the name in REF]
    #[arg(long, env = "MICROGRANITE_SERVED_MODEL_NAME", value_name = "NAME", value_delimiter = ',', value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(super) served_model_name: Vec<String>,

    /// A Jinja file with a chat template, which replaces the model's own.
    #[arg(long, env = "MICROGRANITE_CHAT_TEMPLATE", value_name = "FILE")]
    pub(super) chat_template: Option<PathBuf>,

    /// A file that verify-savings has written for this model. What it measured is shown in /v1/models and in the metrics.
    /// [default: the one in a packed model's folder, if there is one]
    #[arg(long, env = "MICROGRANITE_SAVINGS", value_name = "FILE")]
    pub(super) savings: Option<PathBuf>,

    #[command(flatten)]
    pub(super) weights: WeightsArg,

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
    pub(super) verify: Verify,

    #[command(flatten)]
    pub(super) signature: SignatureArgs,

    /// How often to repeat a few fixed prompts while nothing else runs, in seconds, and to compare the answers with those
    /// that a packed model was made with, or with its first ones. If they differ, weights, memory or processor are
    /// damaged, and the service stops answering. A request that arrives meanwhile waits for one step at most. 0 turns this
    /// off.
    #[arg(long, env = "MICROGRANITE_CANARY_INTERVAL", value_name = "SECS", default_value = "300", value_parser = config::seconds)]
    pub(super) canary_interval: Duration,
}

impl ModelArgs {
    /// The model.
    pub(super) fn reference(&self) -> Reference {
        let named = self.reference.clone().or_else(|| self.model.clone());
        named.unwrap_or(Reference::Demo)
    }
}

/// Where the server listens, and how it keeps and ends connections.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Listening")]
pub(super) struct ListenArgs {
    /// The address of the API. The default can only be reached from this machine; 0.0.0.0:8080 can be reached from
    /// everywhere; unix:PATH is a Unix socket. A socket that systemd passes takes its place.
    #[arg(
        long,
        env = "MICROGRANITE_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:8080"
    )]
    pub(super) listen: Address,

    /// A second address for probes and Prometheus, served by a separate thread that load on the API cannot starve.
    #[arg(long, env = "MICROGRANITE_ADMIN_LISTEN", value_name = "ADDR")]
    pub(super) admin_listen: Option<Address>,

    /// The permissions of Unix sockets, in octal: who may write to them may connect.
    #[arg(long, env = "MICROGRANITE_SOCKET_MODE", value_name = "MODE", value_parser = listening::socket_mode, default_value = "660")]
    pub(super) socket_mode: SocketMode,

    /// Half of --listen, as other servers have it.
    #[arg(long, hide = true, value_name = "HOST", value_parser = part_of_listen)]
    pub(super) host: Option<String>,

    /// The other half.
    #[arg(long, hide = true, value_name = "PORT", value_parser = part_of_listen)]
    pub(super) port: Option<String>,

    /// Concurrent connections, 1 to 65536; more are refused with 503. Each needs a file descriptor and buffers: the soft limit
    /// on descriptors is raised as needed, or this number is lowered to what the hard limit allows.
    /// [default: 1024, or fewer where the process may use less than 4 GiB]
    #[arg(long, env = "MICROGRANITE_MAX_CONNECTIONS", value_name = "N", value_parser = config::whole::<1, 65536>)]
    pub(super) max_connections: Option<usize>,

    /// How long a connection may be idle between requests, in seconds, at most a day. Keep it above the idle timeout of
    /// proxies and clients that reuse connections, or they occasionally lose a request. Less frees connections sooner.
    #[arg(long, env = "MICROGRANITE_KEEP_ALIVE", value_name = "SECS", default_value = "75", value_parser = config::seconds)]
    pub(super) keep_alive: Duration,

    /// How long running answers may take to finish after SIGTERM, in seconds, at most a day. Keep the pod's grace
    /// period ten seconds longer, so that the process can exit even if something hangs.
    #[arg(long, env = "MICROGRANITE_DRAIN_TIMEOUT", value_name = "SECS", default_value = "120", value_parser = config::seconds)]
    pub(super) drain_timeout: Duration,
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
pub(super) struct BatchArgs {
    /// Compute threads, at most one per available core, because more would slow everything down. Fewer leave cores to
    /// other programs. [default: the number of cores, or the cgroup's CPU quota]
    #[arg(long, env = "MICROGRANITE_THREADS", value_name = "N", value_parser = config::thread_count)]
    pub(super) threads: Option<usize>,

    /// Answers to generate at once, 1 to 1024. More increase the total throughput, and the time per token of each
    /// answer. A model with Mamba-2 layers reserves memory for two states of fixed size for each.
    #[arg(long, env = "MICROGRANITE_MAX_BATCH", value_name = "N", value_parser = config::whole::<1, 1024>, default_value_t = engine::Settings::default().max_batch)]
    pub(super) max_batch: usize,

    /// Requests that may wait for a batch slot, 0 to 65536; more are refused with 429. A longer queue refuses fewer
    /// requests but makes them wait longer.
    #[arg(long, env = "MICROGRANITE_MAX_QUEUE", value_name = "N", value_parser = config::whole::<0, 65536>, default_value_t = engine::Settings::default().max_queue)]
    pub(super) max_queue: usize,

    /// Tokens that the prompts of waiting requests may have together, 1 to 16777216; more are refused with 429. A prompt that
    /// waits alone may have more. With several API keys, one key takes at most half of what is free in the queue.
    #[arg(long, env = "MICROGRANITE_MAX_QUEUE_TOKENS", value_name = "N", value_parser = config::whole::<1, 16_777_216>, default_value_t = engine::Settings::default().max_queue_tokens)]
    pub(super) max_queue_tokens: usize,

    /// Seconds within which a request should get its first token, 0.1 to 86400: one that would wait longer by the measured
    /// rates is refused with 429 and the time after which it would not. [default: wait as long as the queue takes]
    #[arg(long, env = "MICROGRANITE_TARGET_TTFT", value_name = "SECS", value_parser = target)]
    pub(super) target_ttft: Option<Duration>,

    /// Largest length of prompt and answer together, in tokens. A lower limit keeps single requests from using the
    /// whole KV cache. [default: the model's own]
    #[arg(long, env = "MICROGRANITE_CONTEXT", value_name = "N", value_parser = config::tokens)]
    pub(super) context: Option<usize>,

    /// Memory for the KV cache: 512MiB, 2GiB, 1G or bytes. More lets more and longer answers run at once; when it is
    /// full, the newest answer pauses until there is room again. [default: 4096 tokens per batch slot, at most half of
    /// the free memory]
    #[arg(long, env = "MICROGRANITE_KV_CACHE", value_name = "SIZE")]
    pub(super) kv_cache: Option<ByteSize>,

    /// Memory for snapshots of the states of recurrent models (Granite 4.0's h- models): 512MiB, 2GiB, 1G or bytes. A
    /// later prompt that begins like an earlier one can only go on from a snapshot, so more lets more conversations go on
    /// without being computed again. Other models need none. [default: one per batch slot, at most a quarter of the free
    /// memory]
    #[arg(long, env = "MICROGRANITE_STATE_CACHE", value_name = "SIZE")]
    pub(super) state_cache: Option<ByteSize>,

    /// How much running answers may slow down while new prompts are processed: the time per token grows by at most this
    /// factor, 1 to 1000. Less keeps running answers steady; more gives new requests their first token sooner.
    #[arg(long, env = "MICROGRANITE_MAX_SLOWDOWN", value_name = "FACTOR", value_parser = config::factor, default_value = "3")]
    pub(super) max_slowdown: f64,

    /// Reuse the computed beginning of prompts for later prompts with the same beginning, as long as the KV cache has
    /// room: on or off. The answers are the same. Response times reveal whether another client has sent the same
    /// beginning; off prevents that.
    #[arg(long, env = "MICROGRANITE_PREFIX_CACHE", value_name = "ON|OFF", value_parser = config::on_off, action = clap::ArgAction::Set, default_value = "on")]
    pub(super) prefix_cache: bool,

    /// Draft tokens per answer and step, copied from repetitions in the prompt and answer where that is likely to save
    /// time, up to 128; 0 turns drafting off. The answers are the same. More speed up quotations, but wrong drafts cost
    /// more.
    #[arg(long, env = "MICROGRANITE_SPECULATION", value_name = "N", value_parser = config::whole::<0, 128>, default_value_t = engine::Settings::default().speculation)]
    pub(super) speculation: usize,
}
