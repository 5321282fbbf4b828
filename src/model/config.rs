//! `config.json`, checked.

use std::path::Path;

use crate::error::Result;

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
    /// Number of blocks.
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
    /// Reads a configuration; `file` is named in errors.
    ///
    /// # Errors
    /// [`crate::error::Error::BadModel`] naming the field, for anything missing, mistyped, out of range or unsupported.
    pub fn from_json(file: &Path, json: &serde_json::Value) -> Result<Self> {
        let _ = json;
        Err(crate::error::Error::bad_model(
            file,
            "config",
            "not read yet",
        ))
    }
}
