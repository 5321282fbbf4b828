//! `microgranite inspect`: describes a model without loading it.

mod kubernetes;
mod table;

use std::collections::BTreeMap;

use serde::Serialize;

use super::print;
use super::progress::Progress;
use crate::config;
use crate::error::{Error, Result};
use crate::int8::kernels::pool::Pool;
use crate::int8::scheme::Scheme;
use crate::model::packed::{self, CalibrationRecord, EvaluationRecord, Quantization, SourceRecord};
use crate::model::{self, MixerKind, ModelConfig};
use crate::sources::{self, Checkpoint, Contents, Reference, Settings};

/// Describe a model: its configuration, weights and tokenizer, and its size at eight bits.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model: a folder, a .gguf file, hf:OWNER/NAME[@REVISION][:LABEL], ollama:NAME[:TAG],
    /// oci://HOST/REPOSITORY[:TAG], or demo.
    ///
    /// For a hub repository, its safetensors are used, or else the GGUF file that is best for int8: Q8_0, then floats,
    /// then the most bits. :LABEL selects another, as in hf:OWNER/NAME:Q4_K_M. The address of a model's page on
    /// huggingface.co works too.
    #[arg(value_name = "REF")]
    reference: Reference,
    /// Verify all weights of a packed model against their checksums. This reads the whole file.
    #[arg(long)]
    verify: bool,
    /// Print values for the Helm chart instead: the sizes of the model, and what serve takes with its default settings.
    #[arg(long, conflicts_with = "verify")]
    kubernetes: bool,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// Opens the model, downloading it if needed, and prints the report on standard output.
///
/// # Errors
/// As [`sources::open`], and [`Error::BadModel`] for an unsupported configuration or damaged weights.
pub fn run(args: Args, settings: &Settings) -> Result<()> {
    let checkpoint = sources::open(&args.reference, settings)?;
    if args.kubernetes {
        let config = ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config)?;
        let footprint = model::footprint_of(&checkpoint, &config);
        let values = kubernetes::Values::of(&checkpoint.name, &config, footprint)?;
        return print(&values, args.json);
    }
    let mut report = Report::of(&checkpoint)?;
    if args.verify {
        report.verified = Some(verify(&checkpoint, settings.progress_bar)?);
    }
    print(&report, args.json)
}

/// Verifies the weights against their checksums; returns how much was compared.
fn verify(checkpoint: &Checkpoint, progress_bar: bool) -> Result<Verified> {
    let Some(packed) = checkpoint.packed() else {
        let problem = "--verify: only a packed model has checksums";
        return Err(Error::Usage(problem.into()));
    };
    let mut progress = Progress::new("verifying", progress_bar);
    let mut pool = Pool::new(config::available_threads())?;
    packed::verify(packed, &mut pool, &mut |done, total| {
        progress.show(done, total);
    })?;
    progress.finish();
    let sizes = packed
        .names()
        .map(|name| packed.bytes(name).map_or(0, <[u8]>::len));
    Ok(Verified {
        bytes: sizes.map(|size| size as u64).sum(),
        checksums: packed.names().count() as u64,
    })
}

/// The report.
#[derive(Debug, Serialize)]
pub struct Report {
    name: String,
    architecture: String,
    config: Shape,
    /// Number of values in all tensors; a tied output head is not counted twice.
    parameters: u64,
    /// The tensors by stored type.
    tensors: BTreeMap<&'static str, Stored>,
    /// The method that produced the codes, if the checkpoint is already int8.
    #[serde(skip_serializing_if = "Option::is_none")]
    quantized_by: Option<&'static str>,
    bytes: Bytes,
    /// How a packed model was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    quantization: Option<Made>,
    tokenizer: Tokenizer,
    /// What `--verify` compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<Verified>,
}

/// Successful verification of the weights.
#[derive(Debug, Serialize)]
struct Verified {
    bytes: u64,
    checksums: u64,
}

/// How a packed model was made.
#[derive(Debug, Serialize)]
struct Made {
    scheme: Scheme,
    /// `compensated` or `nearest`.
    rounding: &'static str,
    /// The exponent of SmoothQuant, if activations were smoothed.
    smooth: Option<f32>,
    calibration: Option<CalibrationRecord>,
    source: SourceRecord,
    created_by: String,
    kept_codes: Option<String>,
    evaluations: Vec<EvaluationRecord>,
}

/// The configuration, with the keys of `config.json`.
#[derive(Debug, Serialize)]
struct Shape {
    hidden_size: usize,
    num_hidden_layers: usize,
    attention_layers: usize,
    #[serde(flatten)]
    mamba: Option<MambaShape>,
    #[serde(flatten)]
    experts: Option<ExpertShape>,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    /// Absent if attention knows no positions.
    rope_theta: Option<f64>,
    rms_norm_eps: f32,
    embedding_multiplier: f32,
    attention_multiplier: f32,
    residual_multiplier: f32,
    logits_scaling: f32,
    tie_word_embeddings: bool,
}

/// The Mamba-2 layers.
#[derive(Debug, Serialize)]
struct MambaShape {
    mamba_n_heads: usize,
    mamba_d_head: usize,
    mamba_d_state: usize,
    state_bytes_per_sequence: u64,
}

/// The experts of a layer.
#[derive(Debug, Serialize)]
struct ExpertShape {
    num_local_experts: usize,
    num_experts_per_tok: usize,
    expert_intermediate_size: usize,
}

/// Tensors of one type.
#[derive(Debug, Default, Serialize)]
struct Stored {
    tensors: u64,
    values: u64,
}

/// The size of the weights in bytes, by format.
#[derive(Debug, Serialize)]
struct Bytes {
    /// As stored.
    stored: u64,
    /// As 32-bit floats.
    f32: u64,
    /// As 16-bit floats.
    bf16: u64,
    /// As int8: one byte per value of a matrix and one f32 scale per row; vectors stay f32.
    int8: u64,
}

#[derive(Debug, Serialize)]
struct Tokenizer {
    tokens: usize,
    special_tokens: usize,
    eos_token_ids: Vec<u32>,
    chat_template: bool,
}

impl Report {
    /// Describes a checkpoint from its headers; no weight is read.
    ///
    /// # Errors
    /// [`Error::BadModel`] for an unsupported configuration.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let config = ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config)?;
        let mut tensors: BTreeMap<&'static str, Stored> = BTreeMap::new();
        let blueprint = model::blueprint(&config);
        let (mut parameters, mut int8) = (0, blueprint.least_bytes());
        let mut add = |dtype: Option<&'static str>, shape: &[usize]| {
            let values = shape.iter().product::<usize>() as u64;
            let stored = tensors.entry(dtype.unwrap_or("unknown")).or_default();
            stored.tensors += 1;
            stored.values += values;
            parameters += values;
        };
        let (stored, quantized_by, quantization) = match &checkpoint.contents {
            Contents::Original(original) => {
                for name in original.names() {
                    add(
                        original.dtype(&name),
                        &original.shape(&name).unwrap_or_default(),
                    );
                }
                (original.stored_bytes(), original.quantization(), None)
            }
            Contents::Packed(packed) => {
                for name in packed.names() {
                    add(packed.dtype(name), packed.shape(name).unwrap_or_default());
                }
                // It stores codes and scales, including padding.
                let stored = packed.stored_bytes();
                (parameters, int8) = (blueprint.elements(), stored);
                (stored, None, Some(Quantization::of(packed)?))
            }
        };
        let added = checkpoint.tokenizer.get_added_tokens_decoder();
        let architecture = checkpoint.config["architectures"][0].as_str();
        Ok(Self {
            name: checkpoint.name.clone(),
            architecture: architecture.unwrap_or_default().to_owned(),
            config: Shape::of(&config),
            parameters,
            tensors,
            quantized_by,
            bytes: Bytes {
                stored,
                f32: 4 * parameters,
                bf16: 2 * parameters,
                int8,
            },
            quantization: quantization.map(|made| Made {
                scheme: made.scheme,
                rounding: match made.compensated {
                    true => "compensated",
                    false => "nearest",
                },
                smooth: made.smooth,
                calibration: made.calibration,
                source: made.source,
                created_by: made.created_by,
                kept_codes: made.kept_codes,
                evaluations: made.evaluations,
            }),
            tokenizer: Tokenizer {
                tokens: checkpoint.tokenizer.get_vocab_size(true),
                special_tokens: added.values().filter(|token| token.special).count(),
                eos_token_ids: checkpoint.eos_token_ids.clone(),
                chat_template: checkpoint.chat_template.is_some(),
            },
            verified: None,
        })
    }
}

impl Shape {
    fn of(config: &ModelConfig) -> Self {
        Self {
            hidden_size: config.hidden_size,
            num_hidden_layers: config.num_layers(),
            attention_layers: config.layers_with(MixerKind::Attention),
            mamba: config.mamba.map(|shape| MambaShape {
                mamba_n_heads: shape.heads,
                mamba_d_head: shape.head_dim,
                mamba_d_state: shape.state_size,
                state_bytes_per_sequence: model::footprint(config).state,
            }),
            experts: config.experts.map(|experts| ExpertShape {
                num_local_experts: experts.count,
                num_experts_per_tok: experts.taken,
                expert_intermediate_size: experts.width,
            }),
            num_attention_heads: config.num_heads,
            num_key_value_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            intermediate_size: config.intermediate_size,
            vocab_size: config.vocab_size,
            max_position_embeddings: config.max_positions,
            rope_theta: config.rope_theta,
            rms_norm_eps: config.rms_norm_eps,
            embedding_multiplier: config.embedding_multiplier,
            attention_multiplier: config.attention_multiplier,
            residual_multiplier: config.residual_multiplier,
            logits_scaling: config.logits_scaling,
            tie_word_embeddings: config.tie_word_embeddings,
        }
    }
}
