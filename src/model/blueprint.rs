//! The one list of a model's parts: the name of each, the rows of the checkpoint that make it, its input, the constant
//! that is folded into it, and the component to which it belongs.
//!
//! Everything else that visits the parts is derived from this list: reading, quantizing and packing a checkpoint,
//! checking its tensors, random weights, bytes and operations, the f32 reference, calibration and the errors of
//! weights. A new part is a line here and a field in [`super::weights`].

use super::columns::{Columns, Rows};
use super::config::{Architecture, ModelConfig};
use super::weights::{Attention, FeedForward, Layer, Mixer, SwiGlu, Weights};
use crate::sources::names::{self, TensorName};

/// Every part of a model.
pub type Blueprint = Weights<MatrixPart, NormPart>;

/// A matrix as the kernels use it.
#[derive(Debug, Clone)]
pub struct MatrixPart {
    /// Its name in a packed file.
    pub name: String,
    /// The layer that it belongs to; `None` for the vocabulary.
    pub layer: Option<usize>,
    /// Which rows of the checkpoint make its columns.
    pub columns: Columns,
    /// Number of inputs.
    pub depth: usize,
    /// Its input; `None` for an embedding that is only looked up.
    pub input: Option<Input>,
    /// The constant of the model that multiplies its product. It is folded into the scales at loading.
    pub factor: f32,
    /// The component to which its bytes belong.
    pub component: Component,
}

/// The weights of a norm.
#[derive(Debug, Clone)]
pub struct NormPart {
    /// Its name in the checkpoint and in a packed file.
    pub name: String,
    /// Number of weights.
    pub len: usize,
    /// The constant of the model that divides its output. It is folded into the weights at loading.
    pub divisor: f32,
}

/// The inputs of matrices. All matrices of a layer with the same `Input` multiply the same values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// The normed residual, from which queries, keys and values are computed.
    Attention,
    /// The result of attention, before its output matrix.
    Output,
    /// The normed residual, from which gate and up are computed.
    FeedForward,
    /// The gated values.
    Down,
    /// The last normed residual.
    Head,
}

/// The components for which the bytes of a model are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The table of token vectors, which is also the head if both are tied.
    Embedding,
    /// A head that is not tied to the embedding.
    Head,
    /// Queries, keys, values and output.
    Attention,
    /// Gate, up and down.
    FeedForward,
}

impl Component {
    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Head => "head",
            Self::Attention => "attention",
            Self::FeedForward => "feed_forward",
        }
    }
}

/// The parts of a model of this shape.
pub fn blueprint(config: &ModelConfig) -> Blueprint {
    let vocabulary = |tensor: TensorName, input, component| MatrixPart {
        name: tensor.whole().trim_end_matches(".weight").into(),
        layer: None,
        columns: Columns::whole(tensor.whole(), config.vocab_size),
        depth: config.hidden_size,
        input,
        factor: 1.0,
        component,
    };
    let tied = config.tie_word_embeddings;
    let input = tied.then_some(Input::Head);
    let head = || vocabulary(names::HEAD, Some(Input::Head), Component::Head);
    Weights {
        layers: (0..config.num_layers)
            .map(|index| layer(config, index))
            .collect(),
        final_norm: NormPart {
            divisor: config.logits_scaling,
            ..norm(names::FINAL_NORM.whole(), config)
        },
        embedding: vocabulary(names::EMBEDDING, input, Component::Embedding),
        head: (!tied).then(head),
    }
}

/// The parts of layer `index`.
pub fn layer(config: &ModelConfig, index: usize) -> Layer<MatrixPart, NormPart> {
    let (hidden, width) = (config.hidden_size, config.intermediate_size);
    let queries = config.num_heads * config.head_dim;
    let keys = config.num_kv_heads * config.head_dim;
    let name = |tensor: TensorName| tensor.in_layer(index);
    let rows = |tensor, count| Rows::all(name(tensor), count);
    let whole = |tensor, count| Columns::whole(name(tensor), count);

    let attention = |packed: &str, columns, depth, input| MatrixPart {
        name: format!("model.layers.{index}.self_attn.{packed}"),
        layer: Some(index),
        columns,
        depth,
        input: Some(input),
        factor: 1.0,
        component: Component::Attention,
    };
    let qkv = Columns::Stacked(vec![
        rows(names::QUERY, queries),
        rows(names::KEY, keys),
        rows(names::VALUE, keys),
    ]);
    let output = whole(names::OUTPUT, hidden);
    let mixer = Mixer::Attention(Attention {
        qkv: attention("qkv_proj", qkv, hidden, Input::Attention),
        output: MatrixPart {
            factor: config.residual_multiplier,
            ..attention("o_proj", output, queries, Input::Output)
        },
    });

    let feed_forward = |packed: &str, columns, depth, input| MatrixPart {
        name: format!("model.layers.{index}.mlp.{packed}"),
        component: Component::FeedForward,
        ..attention(packed, columns, depth, input)
    };
    let (gate_up, down) = match config.architecture {
        Architecture::Granite | Architecture::Llama => (
            [rows(names::GATE, width), rows(names::UP, width)],
            whole(names::DOWN, hidden),
        ),
        Architecture::GraniteHybridDense => (
            Rows::halves(name(names::SHARED_GATE_UP), 2 * width),
            whole(names::SHARED_DOWN, hidden),
        ),
    };
    let gate_up = Columns::Interleaved(gate_up);
    let dense = FeedForward::Dense(SwiGlu {
        gate_up: feed_forward("gate_up_proj", gate_up, hidden, Input::FeedForward),
        down: MatrixPart {
            factor: config.residual_multiplier,
            ..feed_forward("down_proj", down, width, Input::Down)
        },
    });
    Layer {
        mixer_norm: norm(name(names::MIXER_NORM), config),
        mixer,
        feed_forward_norm: norm(name(names::FEED_FORWARD_NORM), config),
        feed_forward: dense,
    }
}

const fn norm(name: String, config: &ModelConfig) -> NormPart {
    NormPart {
        name,
        len: config.hidden_size,
        divisor: 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::shapes;

    #[test]
    fn a_gguf_file_can_hold_every_tensor_of_a_dense_granite() {
        let config = ModelConfig {
            tie_word_embeddings: false,
            ..shapes::named("granite-3.3-2b").expect("a published shape")
        };
        let blueprint = blueprint(&config);
        let matrices = blueprint.matrices().into_iter();
        let mut tensors: Vec<&str> = matrices
            .flat_map(|part| part.columns.tensors().map(|(tensor, _)| tensor))
            .collect();
        tensors.extend(blueprint.norms().iter().map(|part| part.name.as_str()));
        assert_eq!(tensors.len(), 3 + 9 * config.num_layers);
        let names = |layer| names::OF_GGUF.map(|name| name.in_layer(layer));
        let known: Vec<String> = (0..config.num_layers).flat_map(names).collect();
        for tensor in tensors {
            assert!(known.iter().any(|name| name == tensor), "{tensor}");
        }
    }
}
