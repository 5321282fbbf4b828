//! The published dense Granite shapes, for measuring a machine before anything is downloaded.

use super::config::{Architecture, ModelConfig};

/// The sizes in which the published shapes differ.
struct Shape {
    name: &'static str,
    hidden_size: usize,
    num_layers: usize,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    intermediate_size: usize,
    vocab_size: usize,
}

const SHAPES: &[Shape] = &[
    Shape {
        name: "granite-3.3-2b",
        hidden_size: 2048,
        num_layers: 40,
        num_heads: 32,
        num_kv_heads: 8,
        head_dim: 64,
        intermediate_size: 8192,
        vocab_size: 49_159,
    },
    Shape {
        name: "granite-3.3-8b",
        hidden_size: 4096,
        num_layers: 40,
        num_heads: 32,
        num_kv_heads: 8,
        head_dim: 128,
        intermediate_size: 12_800,
        vocab_size: 49_159,
    },
    Shape {
        name: "granite-4.0-350m",
        hidden_size: 1024,
        num_layers: 28,
        num_heads: 16,
        num_kv_heads: 4,
        head_dim: 64,
        intermediate_size: 2048,
        vocab_size: 100_352,
    },
    Shape {
        name: "granite-4.0-1b",
        hidden_size: 2048,
        num_layers: 40,
        num_heads: 16,
        num_kv_heads: 4,
        head_dim: 128,
        intermediate_size: 4096,
        vocab_size: 100_352,
    },
    Shape {
        name: "granite-4.0-micro",
        hidden_size: 2560,
        num_layers: 40,
        num_heads: 40,
        num_kv_heads: 8,
        head_dim: 64,
        intermediate_size: 8192,
        vocab_size: 100_352,
    },
    Shape {
        name: "granite-4.1-3b",
        hidden_size: 2560,
        num_layers: 40,
        num_heads: 40,
        num_kv_heads: 8,
        head_dim: 64,
        intermediate_size: 8192,
        vocab_size: 100_352,
    },
    Shape {
        name: "granite-4.1-8b",
        hidden_size: 4096,
        num_layers: 40,
        num_heads: 32,
        num_kv_heads: 8,
        head_dim: 128,
        intermediate_size: 12_800,
        vocab_size: 100_352,
    },
];

/// The names that [`named`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|shape| shape.name)
}

/// The configuration of a published shape. Its multipliers are Granite's usual ones; they cost nothing at run time.
pub fn named(name: &str) -> Option<ModelConfig> {
    let &Shape {
        hidden_size,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        intermediate_size,
        vocab_size,
        ..
    } = SHAPES.iter().find(|shape| shape.name == name)?;
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
