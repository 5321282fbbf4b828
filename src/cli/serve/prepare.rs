//! Opens the model that the flags describe, and checks that it fits them and this machine.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Args;
use super::plan::{self, Batch, Clients, GivenCaches};
use crate::config::{self, ByteSize};
use crate::engine;
use crate::error::{Error, Result};
use crate::http::app::Plan;
use crate::memory;
use crate::model::packed::{SAVINGS, SavingsRecord};
use crate::model::{self, ModelConfig};
use crate::sources::packed::Packed;
use crate::sources::{self, Checkpoint, Reference};
use crate::text::Tokenizer;
use crate::text::chat::ChatTemplate;

/// A model that was found, opened and checked, as far as possible without reading its weights.
pub struct Prepared {
    /// Bytes allocated before the model was opened, and for its tokenizer.
    pub runtime: u64,
    pub for_tokenizer: u64,
    /// How long that took, by phase of the start.
    pub took: [(&'static str, Duration); 2],
    pub reference: Reference,
    pub checkpoint: Checkpoint,
    pub settings: model::Settings,
    pub plan: Plan,
    pub savings: Option<SavingsRecord>,
    pub tokenizer: Tokenizer,
    pub chat: Option<ChatTemplate>,
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

/// How the engine batches.
pub fn engine_settings(args: &Args) -> engine::Settings {
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

/// Bytes that the allocator has handed out; 0 if it does not say.
pub fn allocated() -> u64 {
    memory::heap().map_or(0, |heap| heap.allocated)
}
