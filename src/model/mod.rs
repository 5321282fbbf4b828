//! The model that `serve` runs: Granite, as its `config.json` describes it.
//!
//! | file | what it holds |
//! |---|---|
//! | `forward` | the interface to the engine: [`Forward`], [`Span`] |
//! | `granite` | the loaded model, and its forward pass |
//! | `phases` | what a forward pass consists of: embedding, mixers, feed-forward layers, head |
//! | `attention`, `queries`, `mamba`, `feed_forward`, `experts`, `norm` | the parts of a layer |
//! | `step`, `rotary` | the data that all rows of a step share |
//! | `kv_cache`, `state`, `lazy` | what sequences leave behind: keys and values, and states of fixed size |
//! | [`quantizer`], [`packed`], `random` | weights from a float checkpoint, from a packed folder, and random weights |
//! | `tensors`, `fold`, `accounts` | tensor checks, folded constants, bytes and operations, derived from the blueprint |
//! | [`blueprint`] | the one list of a model's parts |
//! | [`weights`], `columns` | the structure of a model, and which rows of a tensor make which columns |
//! | `config`, [`shapes`] | a model's shape and constants |
//!
//! Each file uses only those below it.

mod accounts;
mod attention;
pub(crate) mod blueprint;
pub(crate) mod columns;
pub(crate) mod config;
mod experts;
mod feed_forward;
mod fold;
mod forward;
pub(crate) mod granite;
mod kv_cache;
mod lazy;
mod mamba;
mod norm;
pub mod packed;
mod phases;
pub mod quantizer;
mod queries;
mod random;
mod rotary;
pub mod shapes;
mod state;
mod step;
pub(crate) mod tensors;
pub mod weights;

pub use accounts::{Operations, PartMemory, WeightMemory};
pub use blueprint::blueprint;
pub use config::{Experts, Mamba, MixerKind, ModelConfig};
pub use forward::{Forward, PAGE_TOKENS, Rewind, Save, Span};
pub use granite::Granite;
pub use packed::Placement;

use crate::error::{Error, Result};
use crate::int8::compute::Compute;
use crate::int8::scheme::Scheme;
use crate::sources::{Checkpoint, Contents};

/// How to load a model.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Compute threads.
    pub threads: usize,
    /// Bytes for the KV cache.
    pub kv_bytes: u64,
    /// Sequences that have a state at the same time, if the model is recurrent; [`Span::slot`] is below this.
    pub slots: usize,
    /// Snapshots of states that can be kept, if the model is recurrent.
    pub snapshots: usize,
    /// The longest sequence, if shorter than the model's own limit.
    pub context: Option<usize>,
    /// Whether the weights of a packed model are mapped or copied.
    pub weights: Placement,
}

/// The memory that a model takes, known from its configuration before anything is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of the packed weights.
    pub weights: u64,
    /// Bytes of one KV page over all layers.
    pub kv_page: u64,
    /// Keys and values in it.
    pub kv_page_values: u64,
    /// Bytes of the state of one sequence over all layers; 0 if the model is not recurrent.
    pub state: u64,
    /// Bytes that each row of a step takes while it runs: its logits twice, and the values between the matrices.
    pub step_row: u64,
}

/// The memory that a model of this shape will take.
pub fn footprint(config: &ModelConfig) -> Footprint {
    Footprint {
        weights: blueprint(config).packed_bytes(),
        kv_page: kv_cache::KvCache::page_bytes(config) as u64,
        kv_page_values: kv_cache::KvCache::page_values(config) as u64,
        state: state::States::bytes_per_slot(config) as u64,
        step_row: 4 * step_values(config) as u64,
    }
}

/// Values that each row of a step takes while it runs.
fn step_values(config: &ModelConfig) -> usize {
    let mamba = config
        .mamba
        .map_or(0, |shape| shape.projected() + shape.inner());
    // Codes take a quarter of a value, and scales next to nothing.
    let experts = config.experts.map_or(0, |e| {
        e.count + e.taken * (config.hidden_size + e.width) / 4
    });
    2 * config.vocab_size + 8 * config.hidden_size + 3 * config.intermediate_size + mamba + experts
}

/// The memory that `checkpoint` will take; its configuration is `config`.
pub(crate) fn footprint_of(checkpoint: &Checkpoint, config: &ModelConfig) -> Footprint {
    let footprint = footprint(config);
    match checkpoint.packed() {
        // A packed model may have more scales than the default scheme.
        Some(packed) => Footprint {
            weights: packed.stored_bytes(),
            ..footprint
        },
        None => footprint,
    }
}

/// Reads, quantizes and packs a checkpoint, or loads a packed one. `progress` gets the number of weights done and of
/// all weights.
///
/// # Errors
/// [`Error::BadModel`] for anything wrong with the checkpoint, [`Error::Config`] if the KV cache cannot hold a page.
pub fn load(
    checkpoint: &Checkpoint,
    settings: &Settings,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Granite> {
    let config = ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config)?;
    let (context, page_count) = limits(&config, settings)?;
    let mut compute = Compute::new(settings.threads)?;
    let blueprint = blueprint(&config);
    let weights = match &checkpoint.contents {
        Contents::Packed(packed) => {
            let pool = &mut compute.pool;
            packed::load(&blueprint, packed, settings.weights, pool, progress)?
        }
        Contents::Original(tensors) => {
            let (tensors, scheme) = (tensors.as_ref(), Scheme::default());
            let compute = &mut compute;
            quantizer::load(&config, &blueprint, tensors, &scheme, compute, progress)?
        }
    };
    Granite::new(
        config,
        weights,
        page_count,
        [settings.slots, settings.snapshots],
        context,
        compute,
    )
}

/// A model of the given shape with random codes. It is as fast as a real one, but its text is noise.
///
/// # Errors
/// [`Error::Config`] if the KV cache cannot hold a page.
pub fn random(config: ModelConfig, settings: &Settings) -> Result<Granite> {
    let (context, page_count) = limits(&config, settings)?;
    let mut compute = Compute::new(settings.threads)?;
    let weights = random::load(&blueprint(&config), &mut compute.pool)?;
    Granite::new(
        config,
        weights,
        page_count,
        [settings.slots, settings.snapshots],
        context,
        compute,
    )
}

/// The longest sequence and the number of KV pages.
fn limits(config: &ModelConfig, settings: &Settings) -> Result<(usize, usize)> {
    let page_bytes = footprint(config).kv_page;
    let page_count = usize::try_from(settings.kv_bytes / page_bytes).unwrap_or(usize::MAX);
    if page_count == 0 {
        let wanted = settings.kv_bytes;
        return Err(Error::Config(format!(
            "a KV cache of {wanted} bytes is too small: one page takes {page_bytes}"
        )));
    }
    let context = settings
        .context
        .unwrap_or(config.max_positions)
        .min(config.max_positions);
    Ok((context.min(page_count * PAGE_TOKENS), page_count))
}
