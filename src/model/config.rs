//! `config.json`, checked.

use std::fmt::Display;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::sources::forms::{HYBRID, MIXTURE_OF_EXPERTS};

/// The widest head. The attention kernels cannot keep a wider head in registers, and no published Granite or Llama has
/// one.
pub(crate) const HEAD_DIM_MAX: usize = 256;

/// Which published architecture a checkpoint is; all three run the same forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// `GraniteForCausalLM` (Granite 3.x and 4.1).
    Granite,
    /// Dense `GraniteMoeHybridForCausalLM` (Granite 4.0 without experts or Mamba layers).
    GraniteHybridDense,
    /// `LlamaForCausalLM`: Granite with all multipliers neutral.
    Llama,
}

/// The shape and constants of a dense Granite.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which tensor names to expect.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence the model was made for.
    pub max_positions: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
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
        fields.refuse_unsupported(architecture, num_layers)?;

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
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            // Without experts the hybrid's only feed-forward layer is the shared one; `intermediate_size` is then unused.
            intermediate_size: match architecture {
                Architecture::GraniteHybridDense => {
                    fields.count("shared_intermediate_size", 1 << 20)?
                }
                _ => fields.count("intermediate_size", 1 << 20)?,
            },
            // 2²² is sixteen times the largest vocabulary published.
            vocab_size: fields.count("vocab_size", 1 << 22)?,
            max_positions: fields.count("max_position_embeddings", 1 << 24)?,
            rms_norm_eps: fields
                .number("rms_norm_eps", 1e-12, 1e-1)?
                .ok_or_else(|| fields.missing("rms_norm_eps", "a number, such as 1e-5"))?
                as f32,
            rope_theta: fields.rope_theta(granite)?,
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
            // All three architectures are untied unless the file says otherwise.
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
        })
    }
}

/// The configuration, and the file to name in errors.
struct Fields<'a> {
    file: &'a Path,
    json: &'a Value,
}

impl Fields<'_> {
    fn architecture(&self) -> Result<Architecture> {
        const EXPECTED: &str = "expected [\"GraniteForCausalLM\"], [\"GraniteMoeHybridForCausalLM\"] (dense) or [\"LlamaForCausalLM\"]";
        let value = self
            .get("architectures")
            .ok_or_else(|| self.bad("architectures", format!("is missing, {EXPECTED}")))?;
        let name = match value.as_array().map(Vec::as_slice) {
            Some([one]) => one.as_str(),
            _ => None,
        };
        match name {
            Some("GraniteForCausalLM") => Ok(Architecture::Granite),
            Some("GraniteMoeHybridForCausalLM") => Ok(Architecture::GraniteHybridDense),
            Some("LlamaForCausalLM") => Ok(Architecture::Llama),
            Some(name @ "BambaForCausalLM") => {
                Err(self.bad("architectures", format!("{name} {HYBRID}")))
            }
            Some(name) if name.to_lowercase().contains("moe") || name.starts_with("Mixtral") => {
                Err(self.bad("architectures", format!("{name} {MIXTURE_OF_EXPERTS}")))
            }
            _ => Err(self.is_but("architectures", value, EXPECTED)),
        }
    }

    /// Refuses settings that would change the forward pass in a way that is not implemented.
    fn refuse_unsupported(&self, architecture: Architecture, num_layers: usize) -> Result<()> {
        let hybrid = architecture == Architecture::GraniteHybridDense;
        if hybrid {
            self.refuse_mamba()?;
        }
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
        for name in ["num_local_experts", "num_experts"] {
            if self.number(name, 0.0, f64::MAX)?.unwrap_or(0.0) > 0.0 {
                return Err(self.bad(name, format!("is above 0: this {MIXTURE_OF_EXPERTS}")));
            }
        }
        self.only("hidden_act", "silu")?;
        self.only("position_embedding_type", "rope")?;
        if hybrid {
            // An absent value means no rotary embedding.
            let name = "position_embedding_type";
            if self.get(name).is_none() {
                return Err(self.missing(name, "\"rope\""));
            }
        }
        self.attention_in_every_layer(num_layers)?;
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

    /// Refuses a hybrid with Mamba layers and says so in the error. If `layer_types` is missing, all layers are Mamba.
    fn refuse_mamba(&self) -> Result<()> {
        const NAME: &str = "layer_types";
        let Some(types) = self.get(NAME) else {
            return Err(self.bad(NAME, format!("is missing, so this {HYBRID}")));
        };
        let is_mamba = |kind: &Value| matches!(kind.as_str(), Some("mamba" | "linear_attention"));
        let mut types = types.as_array().into_iter().flatten();
        match types.position(is_mamba) {
            Some(layer) => Err(self.bad(&format!("{NAME}[{layer}]"), format!("this {HYBRID}"))),
            None => Ok(()),
        }
    }

    fn attention_in_every_layer(&self, num_layers: usize) -> Result<()> {
        let Some(value) = self.get("layer_types") else {
            return Ok(());
        };
        let types = value
            .as_array()
            .filter(|types| types.len() == num_layers)
            .ok_or_else(|| {
                let expected =
                    format!("expected {num_layers} layer types, as num_hidden_layers says");
                self.is_but("layer_types", value, expected)
            })?;
        for (layer, kind) in types.iter().enumerate() {
            if !matches!(kind.as_str(), Some("attention" | "full_attention")) {
                let expected =
                    "expected \"attention\": Mamba and sliding-window layers are not supported";
                return Err(self.is_but(&format!("layer_types[{layer}]"), kind, expected));
            }
        }
        Ok(())
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

    /// A size: an integer from 1 to `most`, possibly written as `2048.0`.
    fn count(&self, name: &str, most: usize) -> Result<usize> {
        let expected = format!("an integer from 1 to {most}");
        let value = self
            .get(name)
            .ok_or_else(|| self.missing(name, &expected))?;
        value
            .as_f64()
            .filter(|number| number.fract() == 0.0 && (1.0..=most as f64).contains(number))
            .map(|number| number as usize)
            .ok_or_else(|| self.is_but(name, value, format!("expected {expected}")))
    }

    /// One of Granite's multipliers. The bounds are far outside any published value and keep f32 from overflowing.
    fn multiplier(&self, name: &str) -> Result<Option<f32>> {
        let number = self.number(name, 1e-6, 1e6)?;
        Ok(number.map(|number| number as f32))
    }

    /// A number from `least` to `most`, as an integer or a float; `None` if the field is absent.
    fn number(&self, name: &str, least: f64, most: f64) -> Result<Option<f64>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => {
                let expected = match (least, most) {
                    (least, f64::MAX) => format!("expected a number from {least}"),
                    _ if least == most => format!("expected {least}"),
                    _ => format!("expected a number from {least} to {most}"),
                };
                Err(self.is_but(name, value, expected))
            }
        }
    }

    /// A boolean; false if the field is absent.
    fn flag(&self, name: &str) -> Result<bool> {
        let Some(value) = self.get(name) else {
            return Ok(false);
        };
        value
            .as_bool()
            .ok_or_else(|| self.is_but(name, value, "expected true or false"))
    }

    /// Refuses any value but `expected`; an absent field means `expected`.
    fn only(&self, name: &str, expected: &str) -> Result<()> {
        match self.get(name) {
            Some(value) if value != expected => {
                Err(self.is_but(name, value, format!("expected \"{expected}\"")))
            }
            _ => Ok(()),
        }
    }

    /// The field at `path`, whose parts are separated by dots.
    fn get(&self, path: &str) -> Option<&Value> {
        let value = path
            .split('.')
            .try_fold(self.json, |value, key| value.get(key))?;
        (!value.is_null()).then_some(value)
    }

    fn missing(&self, name: &str, expected: impl Display) -> Error {
        self.bad(name, format!("is missing, expected {expected}"))
    }

    fn is_but(&self, name: &str, value: &Value, expected: impl Display) -> Error {
        // The message stays one line on a terminal, whatever the file holds.
        const SHOWN_CHARS: usize = 60;
        let mut shown: String = value.to_string();
        if let Some((end, _)) = shown.char_indices().nth(SHOWN_CHARS) {
            shown.truncate(end);
            shown.push('…');
        }
        self.bad(name, format!("is {shown}, {expected}"))
    }

    fn bad(&self, name: &str, problem: impl Display) -> Error {
        Error::bad_model(self.file, name, problem)
    }
}

#[cfg(test)]
mod tests;
