//! Serves a model to this process alone: the whole application, from its routes to the engine, without a port.

use std::path::PathBuf;
use std::sync::Arc;

use clap::FromArgMatches;

use super::plan::{ClientSizes, GivenSizes};
use super::verify::{self, Verify};
use super::{Args, load, prepare};
use crate::cli::WeightsArg;
use crate::cli::signature::SignatureArgs;
use crate::config::ByteSize;
use crate::error::{Error, Result};
use crate::http::access::Access;
use crate::http::app::App;
use crate::memory as machine;
use crate::sources::{self, Reference};
use crate::telemetry::Metrics;

/// Sequences whose ordinary length the KV cache has room for by default. One conversation is a single sequence, but it
/// grows longer than a request usually is.
const BATCH: usize = 4;

/// The model, and the settings that matter to a single user; the others are those of `serve` by default.
#[derive(Debug)]
pub struct Settings {
    /// The model.
    pub reference: Reference,
    /// A chat template in place of the model's own.
    pub chat_template: Option<PathBuf>,
    /// Where packed weights are kept.
    pub weights: WeightsArg,
    /// Whether the model must be signed.
    pub signature: SignatureArgs,
    /// `--threads`.
    pub threads: Option<usize>,
    /// `--context`.
    pub context: Option<usize>,
    /// `--kv-cache`.
    pub kv_cache: Option<ByteSize>,
}

/// A model that answers requests of this process.
pub struct Here {
    /// The application, for its router.
    pub app: App,
    /// A line about the model.
    pub facts: String,
}

/// Loads a model, as `serve` does.
///
/// # Errors
/// Those of `serve`, except for the ones about ports.
pub fn load(settings: Settings, sources: &sources::Settings) -> Result<Here> {
    let args = arguments(settings)?;
    let given = GivenSizes {
        connections: Some(1),
        ..GivenSizes::default()
    };
    // The one client is in this process, so its connection takes nothing.
    let sizes = ClientSizes::new(given, 0, machine::limit().as_ref());
    let limits = args.limits.limits(sizes)?;
    let prepared = prepare::prepare(&args, sources, sizes.clients(0))?;
    let packed = prepared.packed();
    let metrics = Arc::new(Metrics::new());
    let app = App::new(Arc::clone(&metrics), Access::default(), limits);
    let loaded = load::load(&args, prepared, sources, Arc::clone(&metrics))?;
    app.serve_model(loaded.model);
    if let Some(packed) = packed {
        let placement = args.model.weights.weights;
        verify::watch(packed, Verify::Background, placement, app.clone(), metrics);
    }
    let facts = loaded.facts;
    Ok(Here { app, facts })
}

/// The flags of `serve` by default, whatever the environment says, with `settings`.
fn arguments(settings: Settings) -> Result<Args> {
    let command = clap::Command::new("serve").no_binary_name(true);
    let command = <Args as clap::Args>::augment_args(command);
    let command = command.mut_args(|arg| arg.env(None::<&'static str>));
    let nothing: [&str; 0] = [];
    let defaults = command.try_get_matches_from(nothing);
    let defaults = defaults.and_then(|matches| Args::from_arg_matches(&matches));
    let mut args = defaults.map_err(|problem| Error::Internal(problem.to_string()))?;
    args.model.reference = Some(settings.reference);
    args.model.chat_template = settings.chat_template;
    args.model.weights = settings.weights;
    args.model.signature = settings.signature;
    args.batching.max_batch = BATCH;
    args.batching.threads = settings.threads;
    args.batching.context = settings.context;
    args.batching.kv_cache = settings.kv_cache;
    Ok(args)
}
