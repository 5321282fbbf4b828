//! Where a model comes from. Every source yields the same [`Checkpoint`]: a configuration in Hugging Face's words,
//! a tokenizer, and tensors by their Hugging Face names, read as f32 rows on demand.

use std::ops::Range;
use std::path::PathBuf;

use crate::error::Result;

/// A checkpoint that has been opened and whose headers have been checked; tensor data is read on demand.
pub struct Checkpoint {
    /// A short name for people and `/v1/models`, such as `granite-3.3-2b-instruct`.
    pub name: String,
    /// The file that errors about the configuration should name (`…/config.json` or the GGUF file).
    pub config_file: PathBuf,
    /// `config.json`; a GGUF file's metadata is translated to the same keys.
    pub config: serde_json::Value,
    /// End-of-text ids from `generation_config.json`, the configuration or the GGUF metadata.
    pub eos_token_ids: Vec<u32>,
    /// The tokenizer, ready to encode.
    pub tokenizer: tokenizers::Tokenizer,
    /// The model's own chat template, where the source has one.
    pub chat_template: Option<String>,
    /// The weights.
    pub tensors: Box<dyn Tensors>,
}

/// Tensors by their Hugging Face names (`model.layers.0.self_attn.q_proj.weight`), whatever the file calls them.
///
/// Implementations have validated every name, dtype, shape and byte range against the file before they exist, and
/// present rows in Hugging Face's order (GGUF's permuted Q and K rows are put back).
pub trait Tensors: Send + Sync {
    /// The file that holds `name`, for error messages (the index or folder where `name` is absent).
    fn file(&self, name: &str) -> PathBuf;

    /// The shape of `name`, or `None` if there is no such tensor.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// Reads rows `rows` of the tensor into `out`, widened to f32.
    ///
    /// A 2-D tensor `[n, k]` has `n` rows of `k` values; a 1-D tensor is one row. `out` holds exactly
    /// `rows.len() · k` values.
    ///
    /// # Errors
    /// [`crate::error::Error::BadModel`] when the tensor is absent or a value is not finite.
    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// Every tensor name, in a stable order.
    fn names(&self) -> Vec<String>;

    /// Bytes the tensors take in the file.
    fn stored_bytes(&self) -> u64;
}
