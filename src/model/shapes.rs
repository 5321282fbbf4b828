//! The published dense Granite shapes, for measuring a machine before anything is downloaded.

use super::ModelConfig;
use super::config::Architecture;

/// `(name, hidden, layers, heads, kv_heads, head_dim, intermediate, vocab)`.
type Shape = (
    &'static str,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
);

const SHAPES: &[Shape] = &[
    ("granite-3.3-2b", 2048, 40, 32, 8, 64, 8192, 49_159),
    ("granite-3.3-8b", 4096, 40, 32, 8, 128, 12_800, 49_159),
    ("granite-4.0-350m", 1024, 28, 16, 4, 64, 2048, 100_352),
    ("granite-4.0-1b", 2048, 40, 16, 4, 128, 4096, 100_352),
    ("granite-4.0-micro", 2560, 40, 40, 8, 64, 8192, 100_352),
    ("granite-4.1-3b", 2560, 40, 40, 8, 64, 8192, 100_352),
    ("granite-4.1-8b", 4096, 40, 32, 8, 128, 12_800, 100_352),
];

/// The names that [`named`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|shape| shape.0)
}

/// The configuration of a published shape. Its multipliers are Granite's usual ones; they cost nothing at run time.
pub fn named(name: &str) -> Option<ModelConfig> {
    let shape = SHAPES.iter().find(|shape| shape.0 == name)?;
    let &(
        _,
        hidden_size,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        intermediate_size,
        vocab_size,
    ) = shape;
    Some(ModelConfig {
        architecture: Architecture::Granite,
        hidden_size,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        intermediate_size,
        vocab_size,
        max_positions: 131_072,
        rms_norm_eps: 1e-5,
        rope_theta: 1e7,
        embedding_multiplier: 12.0,
        attention_multiplier: 1.0 / head_dim as f32,
        residual_multiplier: 0.22,
        logits_scaling: 8.0,
        tie_word_embeddings: true,
    })
}
