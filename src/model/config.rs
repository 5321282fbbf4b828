//! `config.json`, checked.

mod fields;
mod kinds;
mod layers;

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::sources::forms::{BAMBA, OTHER_EXPERTS, OTHER_GRANITE};
use fields::Fields;
pub use kinds::{Architecture, Experts, Mamba, MixerKind};
pub(crate) use layers::CONVOLUTION_TAPS;

/// The widest head. The attention kernels cannot keep a wider head in registers, and no published Granite or Llama has
/// one.
pub(crate) const HEAD_DIM_MAX: usize = 256;

/// The shape and constants of a Granite.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which tensor names to expect.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// What mixes the tokens in each layer.
    pub mixers: Vec<MixerKind>,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// The Mamba-2 layers; `None` if there are none.
    pub mamba: Option<Mamba>,
    /// Width of the feed-forward layer that all tokens pass; 0 if there are only experts.
    pub intermediate_size: usize,
    /// The experts; `None` if there are none.
    pub experts: Option<Experts>,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence the model was made for.
    pub max_positions: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies; `None` if attention knows no positions.
    pub rope_theta: Option<f64>,
    /// Multiplies the looked-up embedding, once.
    pub embedding_multiplier: f32,
    /// The softmax scale itself (not 1/√head_dim).
    pub attention_multiplier: f32,
    /// Multiplies each branch before it is added to the residual stream.
    pub residual_multiplier: f32,
    /// Divides the logits.
    pub logits_scaling: f32,
    /// Whether the head is the embedding matrix.
    pub tie_word_embeddings: bool,
}

impl ModelConfig {
    /// Number of layers.
    pub fn num_layers(&self) -> usize {
        self.mixers.len()
    }

    /// Number of layers whose mixer is of this kind.
    pub fn layers_with(&self, kind: MixerKind) -> usize {
        self.mixers.iter().filter(|mixer| **mixer == kind).count()
    }

    /// Reads a configuration; `file` is named in errors. A field that is `null` counts as absent.
    ///
    /// Accepted values are bounded: every product of two sizes fits in 64 bits with room to spare, and allocations of
    /// these sizes have a limit that the file did not choose.
    ///
    /// # Errors
    /// [`crate::error::Error::BadModel`] naming the field, for anything missing, mistyped, out of range or unsupported.
    pub fn from_json(file: &Path, json: &Value) -> Result<Self> {
        let fields = Fields { file, json };
        if !json.is_object() {
            return Err(Error::bad_model(
                file,
                "config",
                "is not a JSON object, expected one",
            ));
        }
        let architecture = fields.architecture()?;
        // Four times the widest dense model published, and eight times the deepest.
        let hidden_size = fields.count("hidden_size", 65_536)?;
        let num_layers = fields.count("num_hidden_layers", 1_000)?;
        fields.refuse_unsupported(architecture)?;

        let mixers = fields.mixers(architecture, num_layers)?;
        let mamba = match mixers.contains(&MixerKind::Mamba) {
            true => Some(fields.mamba(hidden_size)?),
            false => None,
        };
        let experts = fields.experts(architecture, hidden_size, num_layers)?;
        let num_heads = fields.count("num_attention_heads", 1_024)?;
        let num_kv_heads = fields.num_kv_heads(num_heads)?;
        let head_dim = fields.head_dim(hidden_size, num_heads)?;
        let granite = architecture != Architecture::Llama;
        let multiplier = |name| match granite {
            true => Ok(fields.multiplier(name)?.unwrap_or(1.0)),
            false => Ok(1.0),
        };
        Ok(Self {
            architecture,
            hidden_size,
            mixers,
            num_heads,
            num_kv_heads,
            head_dim,
            mamba,
            intermediate_size: fields.shared_width(architecture, experts)?,
            experts,
            // 2²² is sixteen times the largest vocabulary published.
            vocab_size: fields.count("vocab_size", 1 << 22)?,
            max_positions: fields.count("max_position_embeddings", 1 << 24)?,
            rms_norm_eps: fields
                .number("rms_norm_eps", 1e-12, 1e-1)?
                .ok_or_else(|| fields.missing("rms_norm_eps", "a number, such as 1e-5"))?
                as f32,
            rope_theta: fields.positions(architecture)?,
            embedding_multiplier: multiplier("embedding_multiplier")?,
            attention_multiplier: if granite {
                fields.multiplier("attention_multiplier")?.ok_or_else(|| {
                    fields.missing(
                        "attention_multiplier",
                        "the softmax scale, such as 0.015625",
                    )
                })?
            } else {
                (1.0 / (head_dim as f64).sqrt()) as f32
            },
            residual_multiplier: multiplier("residual_multiplier")?,
            logits_scaling: multiplier("logits_scaling")?,
            // All architectures are untied unless the file says otherwise.
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
        })
    }
}

impl Fields<'_> {
    fn architecture(&self) -> Result<Architecture> {
        const EXPECTED: &str = "expected [\"GraniteForCausalLM\"], [\"GraniteMoeForCausalLM\"], [\"GraniteMoeSharedForCausalLM\"], [\"GraniteMoeHybridForCausalLM\"] or [\"LlamaForCausalLM\"]";
        let value = self
            .get("architectures")
            .ok_or_else(|| self.bad("architectures", format!("is missing, {EXPECTED}")))?;
        let name = match value.as_array().map(Vec::as_slice) {
            Some([one]) => one.as_str(),
            _ => None,
        };
        let refuse = |name: &str, problem: &str| {
            let problem = format!("{name} {problem}");
            Err(self.bad("architectures", problem))
        };
        match name {
            Some("GraniteForCausalLM") => Ok(Architecture::Granite),
            Some("GraniteMoeForCausalLM") => Ok(Architecture::GraniteMoe),
            Some("GraniteMoeSharedForCausalLM") => Ok(Architecture::GraniteMoeShared),
            Some("GraniteMoeHybridForCausalLM") => Ok(Architecture::GraniteHybrid),
            Some("LlamaForCausalLM") => Ok(Architecture::Llama),
            Some(name @ "BambaForCausalLM") => refuse(name, BAMBA),
            Some(name) if name.starts_with("Granite") && name.len() <= 64 => {
                refuse(name, OTHER_GRANITE)
            }
            Some(name)
                if (name.to_lowercase().contains("moe") || name.starts_with("Mixtral"))
                    && name.len() <= 64 =>
            {
                refuse(name, OTHER_EXPERTS)
            }
            _ => Err(self.is_but("architectures", value, EXPECTED)),
        }
    }

    /// Refuses settings that would change the forward pass in a way that is not implemented.
    fn refuse_unsupported(&self, architecture: Architecture) -> Result<()> {
        if let Some(value) = self.get("quantization_config") {
            return Err(self.is_but(
                "quantization_config",
                value,
                "expected none: weights must be bf16, f16 or f32",
            ));
        }
        for name in ["attention_bias", "mlp_bias"] {
            if self.flag(name)? {
                return Err(self.bad(name, "is true, expected false: biases are not supported"));
            }
        }
        self.only("hidden_act", "silu")?;
        self.only("normalization_function", "rmsnorm")?;
        if let Some(value) = self.get("sliding_window") {
            let expected = "expected null: attention that looks back only so far is not supported";
            return Err(self.is_but("sliding_window", value, expected));
        }
        if architecture != Architecture::GraniteHybrid {
            self.only("position_embedding_type", "rope")?;
        }
        if let Some(value) = self.get("rope_scaling") {
            let expected = "expected null: scaled rotary embeddings are not supported";
            return Err(self.is_but("rope_scaling", value, expected));
        }
        self.only("rope_parameters.rope_type", "default")?;
        for name in [
            "partial_rotary_factor",
            "rope_parameters.partial_rotary_factor",
        ] {
            self.number(name, 1.0, 1.0)?;
        }
        Ok(())
    }

    /// The base of the rotary frequencies, unless attention knows no positions. A hybrid has positions only where it
    /// says `"rope"`; it may have a base all the same, which then means nothing.
    fn positions(&self, architecture: Architecture) -> Result<Option<f64>> {
        const NAME: &str = "position_embedding_type";
        if architecture == Architecture::GraniteHybrid {
            match self.get(NAME) {
                Some(value) if value == "rope" => {}
                None => return Ok(None),
                Some(value) if value == "nope" => return Ok(None),
                Some(value) => {
                    return Err(self.is_but(NAME, value, "expected \"rope\" or \"nope\""));
                }
            }
        }
        let granite = architecture != Architecture::Llama;
        self.rope_theta(granite).map(Some)
    }

    fn num_kv_heads(&self, num_heads: usize) -> Result<usize> {
        const NAME: &str = "num_key_value_heads";
        if self.get(NAME).is_none() {
            return Ok(num_heads);
        }
        let kv_heads = self.count(NAME, num_heads)?;
        if !num_heads.is_multiple_of(kv_heads) {
            let problem =
                format!("is {kv_heads}, expected a divisor of num_attention_heads ({num_heads})");
            return Err(self.bad(NAME, problem));
        }
        Ok(kv_heads)
    }

    /// The width of a head: the stated one, or the hidden width divided by the number of heads.
    fn head_dim(&self, hidden_size: usize, num_heads: usize) -> Result<usize> {
        const NAME: &str = "head_dim";
        let head_dim = match self.get(NAME) {
            Some(_) => self.count(NAME, HEAD_DIM_MAX)?,
            None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
            None => {
                let problem = format!(
                    "is {num_heads}, expected a divisor of hidden_size ({hidden_size}) as there is no head_dim"
                );
                return Err(self.bad("num_attention_heads", problem));
            }
        };
        // The rotary embedding needs two halves, and the int8 kernels read four values at a time.
        if head_dim > HEAD_DIM_MAX || !head_dim.is_multiple_of(4) {
            let problem =
                format!("is {head_dim}, expected a multiple of 4 that is at most {HEAD_DIM_MAX}");
            return Err(self.bad(NAME, problem));
        }
        Ok(head_dim)
    }

    /// `rope_theta` at the top level (transformers 4) or in `rope_parameters` (transformers 5).
    fn rope_theta(&self, required: bool) -> Result<f64> {
        let read = |name| self.number(name, 1.0, 1e12);
        match (read("rope_theta")?, read("rope_parameters.rope_theta")?) {
            (Some(top), Some(nested)) if top != nested => {
                let problem =
                    format!("is {top}, expected {nested} as rope_parameters.rope_theta says");
                Err(self.bad("rope_theta", problem))
            }
            (Some(theta), _) | (None, Some(theta)) => Ok(theta),
            (None, None) if required => Err(self.missing("rope_theta", "a number, such as 10000")),
            // The first Llama files are older than the field and use this value.
            (None, None) => Ok(10_000.0),
        }
    }
}

#[cfg(test)]
mod tests;
