//! Loads the model that the flags describe, until it is ready to serve.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Args;
use super::plan::{self, Batch, Clients, GivenCaches};
use crate::build;
use crate::cli::progress::Progress;
use crate::config::{self, ByteSize};
use crate::engine::{self, Engine};
use crate::error::{Error, Result};
use crate::http::app::{self, Facts, Plan, ServedModel};
use crate::int8::scheme::Scheme;
use crate::memory::{self, accounts::Accounts};
use crate::model::packed::{CanaryRecord, Measured, Quantization, SAVINGS, SavingsRecord};
use crate::model::{self, Forward, ModelConfig};
use crate::sources::packed::Packed;
use crate::sources::{self, Checkpoint, Reference};
use crate::telemetry::{Metrics, SavingsOf};
use crate::text::chat::ChatTemplate;
use crate::text::{Grammars, Tokenizer};

/// A model that is ready, and a line about it for the log.
pub struct Loaded {
    /// For the routes.
    pub model: ServedModel,
    /// For people.
    pub facts: String,
    /// Where its memory is.
    pub accounts: Accounts,
    /// What a packed model answered to fixed prompts when it was made.
    pub canary: Option<CanaryRecord>,
}

/// A model that was found, opened and checked, as far as possible without reading its weights.
pub struct Prepared {
    /// Bytes allocated before the model was opened, and for its tokenizer.
    runtime: u64,
    for_tokenizer: u64,
    /// How long that took, by phase of the start.
    took: [(&'static str, Duration); 2],
    reference: Reference,
    checkpoint: Checkpoint,
    settings: model::Settings,
    plan: Plan,
    savings: Option<SavingsRecord>,
    tokenizer: Tokenizer,
    chat: Option<ChatTemplate>,
}

impl Prepared {
    /// The weights, if they are packed and used from the memory map.
    pub fn packed(&self) -> Option<Packed> {
        self.checkpoint.packed().cloned()
    }
}

/// Like [`prepare`], for a model on this machine; `None` for one that has to be downloaded first.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_local(
    args: &Args,
    sources: &sources::Settings,
    clients: Clients,
) -> Result<Option<Prepared>> {
    if let Some(file) = &args.model.chat_template {
        read_template(file)?;
    }
    let offline = sources::Settings {
        offline: true,
        ..sources.clone()
    };
    match prepare(args, &offline, clients) {
        Err(Error::Unavailable(_)) if !sources.offline => Ok(None),
        prepared => prepared.map(Some),
    }
}

/// Opens and checks the model, downloading it first if necessary.
///
/// # Errors
/// The errors of opening it, and [`Error::Config`] for settings that do not fit the model or this machine.
pub fn prepare(args: &Args, sources: &sources::Settings, clients: Clients) -> Result<Prepared> {
    let reference = args.model.reference();
    let (runtime, began) = (allocated(), Instant::now());
    let checkpoint = sources::open(&reference, sources)?;
    let opened = began.elapsed();
    let (settings, plan) = model_settings(args, &checkpoint, clients)?;
    let file = tokenizer_file(&checkpoint.config_file);
    let (before, began) = (allocated(), Instant::now());
    let tokenizer = Tokenizer::new(checkpoint.tokenizer.clone(), &file)?;
    let config = ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config)?;
    tokenizer.check_rows(config.vocab_size, &file)?;
    let template = args.model.chat_template.as_deref();
    let chat = chat_template(template, &checkpoint, &tokenizer)?;
    Ok(Prepared {
        runtime,
        for_tokenizer: allocated().saturating_sub(before),
        took: [("open", opened), ("tokenizer", began.elapsed())],
        reference,
        settings,
        plan,
        savings: savings(args, &checkpoint)?,
        tokenizer,
        chat,
        checkpoint,
    })
}

/// Loads and starts the model. This takes long, so it runs on a separate thread.
///
/// # Errors
/// The errors of loading it.
pub fn load(
    args: &Args,
    prepared: Prepared,
    sources: &sources::Settings,
    metrics: Arc<Metrics>,
) -> Result<Loaded> {
    let started = Instant::now();
    let Prepared {
        runtime,
        for_tokenizer,
        took,
        reference,
        checkpoint,
        settings,
        plan,
        savings,
        tokenizer,
        chat,
    } = prepared;
    let signature = args.model.signature.check(&checkpoint)?;
    metrics.set_signature_state(signature);
    let work = match checkpoint.packed() {
        Some(_) => "loading",
        None => "quantizing",
    };
    let mut progress = Progress::new(work, sources.progress_bar);
    let mut granite = model::load(&checkpoint, &settings, &mut |done, total| {
        progress.show(done, total);
    })?;
    progress.finish();
    for (phase, took) in took.into_iter().chain([("weights", started.elapsed())]) {
        metrics.set_startup(phase, took);
    }
    metrics
        .read_bandwidth_bytes_per_second
        .set(granite.read_rate());
    let began = Instant::now();

    let (name, aliases) = match args.model.served_model_name.split_first() {
        Some((name, aliases)) => (name.clone(), aliases.to_vec()),
        None => (served_name(&reference, &checkpoint.name), Vec::new()),
    };
    let canary = match checkpoint.packed() {
        Some(packed) => CanaryRecord::read(packed.folder())?,
        None => None,
    };
    let made = checkpoint.packed().map(Quantization::of);
    let mut made = made.transpose()?;
    // The last entry is the newest.
    let accuracy = made.as_mut().and_then(|made| made.evaluations.pop());
    let (weights, kernel) = (granite.memory(), granite.kernel().name());
    let accounts = granite.accounts();
    let states = (settings.slots as u64)
        .saturating_add(settings.snapshots as u64)
        .saturating_mul(granite.state_bytes() as u64);
    let (threads, architecture) = (granite.threads(), granite.config().architecture);
    let engine = Engine::start(
        Box::new(granite),
        engine_settings(args),
        Arc::clone(&metrics),
    )?;
    let context = engine.limits().context_length;
    let before = allocated();
    let grammars = Grammars::new(
        &tokenizer,
        &checkpoint.eos_token_ids,
        engine.limits().vocab_size,
        args.limits.grammars(),
        Arc::clone(&metrics),
    );

    let tokenizer_bytes = for_tokenizer + allocated().saturating_sub(before);

    metrics.set_startup("engine", began.elapsed());
    let parts = weights.parts.iter();
    let parts = parts.map(|part| (part.component, part.dtype, part.bytes));
    metrics.set_model_memory(parts, weights.elements);
    metrics.set_info(&name, &format!("{architecture:?}"), context, kernel);
    if let Some(found) = &accuracy {
        let found = &found.int8;
        metrics.set_accuracy(&[
            ("kl_mean", found.kl_mean),
            ("same_top_token", found.same_top_token),
            ("perplexity", found.perplexity),
            ("perplexity_reference", found.perplexity_reference),
        ]);
    }
    if let Some(found) = &savings {
        show_savings(found, &metrics);
    }
    let facts = format!(
        "{}: {} M parameters in {} of int8 weights ({:.0} % of f32), context {context}, {} of KV cache, \
         {}{threads} threads, {kernel}, a queue of {} requests and {} tokens; loaded in {:.1} s",
        checkpoint.name,
        weights.elements / 1_000_000,
        ByteSize(weights.total()),
        100.0 * weights.total() as f64 / (4 * weights.elements) as f64,
        ByteSize(settings.kv_bytes),
        match states {
            0 => String::new(),
            _ => format!(
                "{} for {} states and {} snapshots, ",
                ByteSize(states),
                settings.slots,
                settings.snapshots
            ),
        },
        args.batching.max_queue,
        args.batching.max_queue_tokens,
        started.elapsed().as_secs_f64(),
    );
    let model = ServedModel {
        name,
        aliases,
        root: reference.to_string(),
        fingerprint: format!(
            "microgranite-{}-{}-{}-int8-{kernel}",
            build::VERSION,
            build::ID,
            &checkpoint.digest()[..12]
        ),
        created: app::unix_seconds(),
        stop_ids: checkpoint.eos_token_ids,
        tokenizer: Arc::new(tokenizer),
        grammars: Arc::new(grammars),
        chat: chat.map(Arc::new),
        facts: Facts {
            scheme: made.map_or_else(Scheme::default, |made| made.scheme),
            kernel: kernel.to_owned(),
            parameters: weights.elements,
            weight_bytes: weights.total(),
            weight_bytes_f32: 4 * weights.elements,
            kv_cache_bytes: settings.kv_bytes,
            recurrent_state_bytes: states,
            accuracy,
            signature,
            savings,
            plan,
        },
        defaults: args.generation.defaults(&checkpoint.generation),
        engine,
    };
    let accounts = Accounts {
        runtime,
        tokenizer: tokenizer_bytes,
        ..accounts
    };
    Ok(Loaded {
        model,
        facts,
        accounts,
        canary,
    })
}

/// Bytes that the allocator has handed out; 0 if it does not say.
pub fn allocated() -> u64 {
    memory::heap().map_or(0, |heap| heap.allocated)
}

/// The template of `file`, or else the model's own. If the model's own cannot be parsed, only chat is unavailable.
fn chat_template(
    file: Option<&Path>,
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
) -> Result<Option<ChatTemplate>> {
    let bos = checkpoint.config.get("bos_token_id");
    let bos = bos.and_then(|id| u32::try_from(id.as_u64()?).ok());
    let eos = checkpoint.eos_token_ids.first().copied();
    let compile = |source: &str| ChatTemplate::new(source, tokenizer, bos, eos);
    if let Some(file) = file {
        let compiled = compile(&read_template(file)?);
        return compiled
            .map(Some)
            .map_err(|problem| Error::bad_model(file, "template", problem));
    }
    let Some(source) = &checkpoint.chat_template else {
        return Ok(None);
    };
    match compile(source) {
        Ok(template) => Ok(Some(template)),
        Err(problem) => {
            tracing::warn!(%problem, "the model's chat template cannot be used; --chat-template gives another");
            Ok(None)
        }
    }
}

fn read_template(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).map_err(|problem| Error::not_found(file, problem))
}

/// What `verify-savings` measured: the file that was named, or the one in a packed model's folder. One in the folder that
/// cannot be read is not worth refusing to serve.
fn savings(args: &Args, checkpoint: &Checkpoint) -> Result<Option<SavingsRecord>> {
    if let Some(file) = &args.model.savings {
        return SavingsRecord::read(file).map(Some);
    }
    let Some(packed) = checkpoint.packed() else {
        return Ok(None);
    };
    match SavingsRecord::read(&packed.quantization_file.with_file_name(SAVINGS)) {
        Ok(found) => Ok(Some(found)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(problem) => {
            tracing::warn!(%problem, "what int8 saves is not shown; verify-savings measures it again");
            Ok(None)
        }
    }
}

fn show_savings(found: &SavingsRecord, metrics: &Metrics) {
    let side = |dtype, side: &Measured| SavingsOf {
        dtype,
        resident_bytes: side.resident_bytes,
        peak_bytes: side.peak_bytes,
        ready_seconds: side.ready_seconds,
        cpu_seconds: side.cpu_seconds,
        tokens_per_second: [
            side.prefill_tokens_per_second,
            side.decode_tokens_per_second,
        ],
        joules_per_token: side.joules_per_token,
    };
    let sides = [side("int8", &found.int8), side("f32", &found.f32)];
    let divergence = [
        ("kl_mean", found.kl_mean),
        ("same_top_token", found.same_top_token),
    ];
    metrics.savings().set(sides, &divergence);
}

/// How the engine batches.
fn engine_settings(args: &Args) -> engine::Settings {
    let (defaults, batching) = (engine::Settings::default(), &args.batching);
    engine::Settings {
        max_batch: batching.max_batch,
        max_queue: batching.max_queue,
        max_queue_tokens: batching.max_queue_tokens,
        target_ttft: batching.target_ttft,
        step_tokens: defaults.step_tokens.max(batching.max_batch),
        prompt_rows: engine::PromptRows::Slowdown(batching.max_slowdown),
        prefix_cache: batching.prefix_cache,
        speculation: batching.speculation,
        max_unread_bytes: defaults.max_unread_bytes,
    }
}

/// Threads, cache and context, checked against the model and this machine.
fn model_settings(
    args: &Args,
    checkpoint: &Checkpoint,
    clients: Clients,
) -> Result<(model::Settings, Plan)> {
    let config = ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config)?;
    let most = config.max_positions;
    let batching = &args.batching;
    let context = batching.context.unwrap_or(most);
    if context > most {
        let problem = format!("--context {context}: this model takes at most {most} tokens");
        return Err(Error::Config(problem));
    }
    let slots = engine_settings(args).slots();
    let asked = GivenCaches {
        kv: batching.kv_cache,
        // Without a prefix cache nobody goes back to a snapshot.
        states: match batching.prefix_cache {
            true => batching.state_cache,
            false => Some(ByteSize(0)),
        },
    };
    let batch = Batch {
        context,
        max_batch: batching.max_batch,
        slots,
    };
    let footprint = model::footprint_of(checkpoint, &config);
    let limit = memory::limit();
    let caches = plan::caches(asked, footprint, batch, clients, limit.clone())?;
    let settings = model::Settings {
        threads: config::threads(batching.threads),
        kv_bytes: caches.kv_bytes,
        slots,
        snapshots: caches.snapshots,
        context: Some(context),
        weights: args.model.weights.weights,
    };
    let plan = Plan {
        limit,
        beside: plan::Parts::new(footprint, batch, clients, caches).beside(),
        kv_page: footprint.kv_page,
        kv_page_values: footprint.kv_page_values,
        state: footprint.state,
    };
    Ok((settings, plan))
}

/// The file to name in errors about the tokenizer: a folder has a separate one, a GGUF file contains it.
fn tokenizer_file(config_file: &Path) -> PathBuf {
    match config_file.file_name() {
        Some(name) if name == "config.json" => config_file.with_file_name("tokenizer.json"),
        _ => config_file.to_owned(),
    }
}

/// The name that clients use for the model: `demo` itself, or the name of the repository or file.
fn served_name(reference: &Reference, checkpoint: &str) -> String {
    match reference {
        Reference::Demo => "demo".to_owned(),
        Reference::Hub { repo, .. } => repo.clone(),
        Reference::Image(image) => image.served_name(),
        Reference::Folder(_) | Reference::Gguf(_) => checkpoint.to_owned(),
    }
}
