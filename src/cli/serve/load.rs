//! Loads the model that was prepared, until it is ready to serve.

use std::sync::Arc;
use std::time::Instant;

use super::Args;
use super::prepare::{Prepared, allocated, engine_settings};
use crate::build;
use crate::cli::progress::Progress;
use crate::config::ByteSize;
use crate::engine::Engine;
use crate::error::Result;
use crate::http::app::{self, Facts, ServedModel};
use crate::int8::scheme::Scheme;
use crate::memory::accounts::Accounts;
use crate::model::packed::{CanaryRecord, EvaluationRecord, Measured, Quantization, SavingsRecord};
use crate::model::{self, Forward, Granite};
use crate::sources::{self, Checkpoint, Reference};
use crate::telemetry::{Metrics, SavingsOf};
use crate::text::Grammars;

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
    let mut granite = load_weights(&checkpoint, &settings, sources)?;
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
        show_accuracy(found, &metrics);
    }
    if let Some(found) = &savings {
        show_savings(found, &metrics);
    }
    let facts = Facts {
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
    };
    let line = format!(
        "{}: {}, context {context}, {}, {threads} threads, {kernel}, a queue of {} requests and {} tokens; loaded in {:.1} s",
        checkpoint.name,
        weights_in_words(&facts),
        caches_in_words(&facts, &settings),
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
        facts,
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
        facts: line,
        accounts,
        canary,
    })
}

/// Loads the weights, or quantizes them, and shows how far that is.
fn load_weights(
    checkpoint: &Checkpoint,
    settings: &model::Settings,
    sources: &sources::Settings,
) -> Result<Granite> {
    let work = match checkpoint.packed() {
        Some(_) => "loading",
        None => "quantizing",
    };
    let mut progress = Progress::new(work, sources.progress_bar);
    let granite = model::load(checkpoint, settings, &mut |done, total| {
        progress.show(done, total);
    })?;
    progress.finish();
    Ok(granite)
}

fn weights_in_words(facts: &Facts) -> String {
    format!(
        "{} M parameters in {} of int8 weights ({:.0} % of f32)",
        facts.parameters / 1_000_000,
        ByteSize(facts.weight_bytes),
        100.0 * facts.weight_bytes as f64 / facts.weight_bytes_f32 as f64,
    )
}

fn caches_in_words(facts: &Facts, settings: &model::Settings) -> String {
    let kv = format!("{} of KV cache", ByteSize(facts.kv_cache_bytes));
    match ByteSize(facts.recurrent_state_bytes) {
        ByteSize(0) => kv,
        states => format!(
            "{kv}, {states} for {} states and {} snapshots",
            settings.slots, settings.snapshots
        ),
    }
}

fn show_accuracy(found: &EvaluationRecord, metrics: &Metrics) {
    let found = &found.int8;
    metrics.set_accuracy(&[
        ("kl_mean", found.kl_mean),
        ("same_top_token", found.same_top_token),
        ("perplexity", found.perplexity),
        ("perplexity_reference", found.perplexity_reference),
    ]);
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

/// The name that clients use for the model: `demo` itself, or the name of the repository or file.
fn served_name(reference: &Reference, checkpoint: &str) -> String {
    match reference {
        Reference::Demo => "demo".to_owned(),
        Reference::Hub { repo, .. } => repo.clone(),
        Reference::Image(image) => image.served_name(),
        Reference::Folder(_) | Reference::Gguf(_) => checkpoint.to_owned(),
    }
}
