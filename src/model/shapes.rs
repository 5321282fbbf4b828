//! The published Granite shapes, for measuring a machine before anything is downloaded.

use super::config::{Architecture, Experts, Mamba, MixerKind, ModelConfig};

/// The sizes in which the published shapes differ.
struct Shape {
    name: &'static str,
    hidden_size: usize,
    num_layers: usize,
    /// The layers with attention, if the others are Mamba-2.
    attention_at: Option<[usize; 4]>,
    /// Query heads, key and value heads, and their width.
    heads: [usize; 3],
    /// Heads of a Mamba-2 layer and their width.
    mamba_heads: [usize; 2],
    intermediate_size: usize,
    /// Experts, how many of them a token takes, and their width.
    experts: Option<[usize; 3]>,
    vocab_size: usize,
}

/// What most shapes have none of.
const DENSE: Shape = Shape {
    name: "",
    hidden_size: 0,
    num_layers: 40,
    attention_at: None,
    heads: [0; 3],
    mamba_heads: [0; 2],
    intermediate_size: 0,
    experts: None,
    vocab_size: 100_352,
};

/// What the hybrids of Granite 4.0 have in common.
const HYBRID: Shape = Shape {
    attention_at: Some([5, 15, 25, 35]),
    ..DENSE
};

const SHAPES: &[Shape] = &[
    Shape {
        name: "granite-3.3-2b",
        hidden_size: 2048,
        heads: [32, 8, 64],
        intermediate_size: 8192,
        vocab_size: 49_159,
        ..DENSE
    },
    Shape {
        name: "granite-3.3-8b",
        hidden_size: 4096,
        heads: [32, 8, 128],
        intermediate_size: 12_800,
        vocab_size: 49_159,
        ..DENSE
    },
    Shape {
        name: "granite-4.0-350m",
        hidden_size: 1024,
        num_layers: 28,
        heads: [16, 4, 64],
        intermediate_size: 2048,
        ..DENSE
    },
    Shape {
        name: "granite-4.0-1b",
        hidden_size: 2048,
        heads: [16, 4, 128],
        intermediate_size: 4096,
        ..DENSE
    },
    Shape {
        name: "granite-4.0-micro",
        hidden_size: 2560,
        heads: [40, 8, 64],
        intermediate_size: 8192,
        ..DENSE
    },
    Shape {
        name: "granite-4.1-3b",
        hidden_size: 2560,
        heads: [40, 8, 64],
        intermediate_size: 8192,
        ..DENSE
    },
    Shape {
        name: "granite-4.1-8b",
        hidden_size: 4096,
        heads: [32, 8, 128],
        intermediate_size: 12_800,
        ..DENSE
    },
    Shape {
        name: "granite-4.0-h-350m",
        hidden_size: 768,
        num_layers: 32,
        attention_at: Some([10, 13, 17, 27]),
        heads: [12, 4, 64],
        mamba_heads: [48, 32],
        intermediate_size: 2048,
        ..HYBRID
    },
    Shape {
        name: "granite-4.0-h-1b",
        hidden_size: 1536,
        heads: [12, 4, 128],
        mamba_heads: [48, 64],
        intermediate_size: 4096,
        ..HYBRID
    },
    Shape {
        name: "granite-4.0-h-micro",
        hidden_size: 2048,
        heads: [32, 8, 64],
        mamba_heads: [64, 64],
        intermediate_size: 8192,
        ..HYBRID
    },
    Shape {
        name: "granite-4.0-h-tiny",
        hidden_size: 1536,
        heads: [12, 4, 128],
        mamba_heads: [48, 64],
        intermediate_size: 1024,
        experts: Some([64, 6, 512]),
        ..HYBRID
    },
    Shape {
        name: "granite-4.0-h-small",
        hidden_size: 4096,
        heads: [32, 8, 128],
        mamba_heads: [128, 64],
        intermediate_size: 1536,
        experts: Some([72, 10, 768]),
        ..HYBRID
    },
    Shape {
        name: "granite-3.1-1b-a400m",
        hidden_size: 1024,
        num_layers: 24,
        heads: [16, 8, 64],
        experts: Some([32, 8, 512]),
        vocab_size: 49_155,
        ..DENSE
    },
    Shape {
        name: "granite-3.1-3b-a800m",
        hidden_size: 1536,
        num_layers: 32,
        heads: [24, 8, 64],
        experts: Some([40, 8, 512]),
        vocab_size: 49_155,
        ..DENSE
    },
];

/// The names that [`named`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|shape| shape.name)
}

/// The configuration of a published shape. Its multipliers are Granite's usual ones; they cost nothing at run time.
pub fn named(name: &str) -> Option<ModelConfig> {
    let shape = SHAPES.iter().find(|shape| shape.name == name)?;
    let [num_heads, num_kv_heads, head_dim] = shape.heads;
    let mixer = |layer| match shape.attention_at {
        Some(attention) if !attention.contains(&layer) => MixerKind::Mamba,
        _ => MixerKind::Attention,
    };
    let is_hybrid = shape.attention_at.is_some();
    let [mamba_heads, mamba_head_dim] = shape.mamba_heads;
    let mamba = Mamba {
        heads: mamba_heads,
        head_dim: mamba_head_dim,
        state_size: 128,
    };
    let experts = shape.experts.map(|[count, taken, width]| Experts {
        count,
        taken,
        width,
    });
    Some(ModelConfig {
        architecture: match (is_hybrid, experts) {
            (true, _) => Architecture::GraniteHybrid,
            (false, Some(_)) => Architecture::GraniteMoe,
            (false, None) => Architecture::Granite,
        },
        hidden_size: shape.hidden_size,
        mixers: (0..shape.num_layers).map(mixer).collect(),
        num_heads,
        num_kv_heads,
        head_dim,
        mamba: is_hybrid.then_some(mamba),
        intermediate_size: shape.intermediate_size,
        experts,
        vocab_size: shape.vocab_size,
        max_positions: 131_072,
        rms_norm_eps: 1e-5,
        rope_theta: (!is_hybrid).then_some(1e7),
        embedding_multiplier: 12.0,
        attention_multiplier: 1.0 / head_dim as f32,
        residual_multiplier: 0.22,
        logits_scaling: 8.0,
        tie_word_embeddings: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{blueprint, footprint};

    #[test]
    fn published_shapes_have_the_published_numbers_of_parameters() {
        for (name, elements) in [
            ("granite-4.0-h-350m", 340_332_224),
            ("granite-4.0-h-1b", 1_461_538_368),
            ("granite-4.0-h-micro", 3_191_396_096),
            ("granite-4.0-h-tiny", 6_939_037_248),
            ("granite-4.0-h-small", 32_207_337_984),
            ("granite-3.1-1b-a400m", 1_334_628_352),
            ("granite-3.1-3b-a800m", 3_298_793_472),
        ] {
            let config = named(name).expect(name);
            assert_eq!(blueprint(&config).elements(), elements, "{name}");
        }
    }

    #[test]
    fn states_and_pages_of_hybrids_have_the_sizes_worked_out_by_hand() {
        for (name, state, page) in [
            ("granite-4.0-h-350m", 22_622_208, 139_264),
            ("granite-4.0-h-1b", 58_060_800, 270_336),
            ("granite-4.0-h-micro", 77_377_536, 278_528),
            ("granite-4.0-h-small", 154_644_480, 540_672),
        ] {
            let footprint = footprint(&named(name).expect(name));
            assert_eq!(
                (footprint.state, footprint.kv_page),
                (state, page),
                "{name}"
            );
        }
    }
}
