//! The one list of a model's parts: the name of each, the rows of the checkpoint that make it, its input, the constant
//! that is folded into it, and the component to which it belongs.
//!
//! Everything else that visits the parts is derived from this list: reading, quantizing and packing a checkpoint,
//! checking its tensors, random weights, bytes and operations, the f32 reference, calibration and the errors of
//! weights. A new part is a line here and a field in [`super::weights`].

use super::columns::{Columns, Rows};
use super::config::{self, Architecture, CONVOLUTION_TAPS, MixerKind, ModelConfig};
use super::weights::{Attention, Experts, FeedForward, Layer, Mamba, Mixer, SwiGlu, Weights};
use crate::int8::PANEL;
use crate::sources::names::{self, TensorName};

/// Every part of a model.
pub type Blueprint = Weights<MatrixPart, VectorPart>;

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
    /// The experts whose matrices it holds, one after the other; `None` for an ordinary matrix.
    pub experts: Option<config::Experts>,
    /// Its input; `None` for an embedding that is only looked up.
    pub input: Option<Input>,
    /// The constant of the model that multiplies its product. It is folded into the scales at loading.
    pub factor: f32,
    /// The component to which its bytes belong.
    pub component: Component,
}

/// Floats that are not quantized, such as the weights of a norm.
#[derive(Debug, Clone)]
pub struct VectorPart {
    /// Its name in the checkpoint and in a packed file.
    pub name: String,
    /// Its shape in both.
    pub shape: Vec<usize>,
    /// The tensor that holds the logarithm of the negated values, where a checkpoint has that in their place.
    pub logarithm: Option<String>,
    /// If set, a loaded model has the rows of this matrix transposed in blocks of so many:
    /// `[rows/lanes][width][lanes]`, with zeros for the rows that the last block lacks.
    pub lanes: Option<usize>,
    /// The constant of the model that divides its output. It is folded into the weights at loading.
    pub divisor: f32,
    /// The component to which its bytes belong.
    pub component: Component,
}

/// Experts whose router outputs are computed together: a vector of floats.
pub const ROUTER_LANES: usize = 16;

impl VectorPart {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The number of rows and of values in each, of the matrix that is stored.
    pub fn rows(&self) -> (usize, usize) {
        let width = self.shape.last().copied().unwrap_or(1);
        (self.len() / width, width)
    }

    /// What is wrong with the values of this part, which are finite, if anything is. A state that does not decay grows
    /// without bounds; the exponential of a logarithm far below zero is a rate of -0.
    pub fn problem(&self, values: &[f32]) -> Option<String> {
        self.logarithm.as_ref()?;
        let at = values.iter().position(|value| value.is_sign_positive())?;
        let value = values[at];
        Some(format!("value {at} is {value}, expected a negative number"))
    }

    /// Number of values in a loaded model.
    pub fn loaded_len(&self) -> usize {
        let (rows, width) = self.rows();
        rows.next_multiple_of(self.lanes.unwrap_or(1)) * width
    }
}

/// The inputs of matrices. All matrices of a layer with the same `Input` multiply the same values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// The normed residual, which the mixer begins with.
    Mixer,
    /// The result of the mixer, before its output matrix.
    Output,
    /// The normed residual, from which gate and up are computed.
    FeedForward,
    /// The gated values.
    Down,
    /// The gated values of the experts.
    ExpertsDown,
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
    /// All of a Mamba-2 mixer.
    Mamba,
    /// Gate, up and down that all tokens pass.
    FeedForward,
    /// Gate, up and down of the experts.
    Experts,
    /// The choice of experts.
    Router,
    /// Norms before mixers, feed-forward layers and the head.
    Norm,
}

impl Component {
    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Head => "head",
            Self::Attention => "attention",
            Self::Mamba => "mamba",
            Self::FeedForward => "feed_forward",
            Self::Experts => "experts",
            Self::Router => "router",
            Self::Norm => "norm",
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
        experts: None,
        input,
        factor: 1.0,
        component,
    };
    let tied = config.tie_word_embeddings;
    let input = tied.then_some(Input::Head);
    let head = || vocabulary(names::HEAD, Some(Input::Head), Component::Head);
    Weights {
        layers: (0..config.num_layers())
            .map(|index| layer(config, index))
            .collect(),
        final_norm: VectorPart {
            divisor: config.logits_scaling,
            ..vector(
                names::FINAL_NORM.whole(),
                &[config.hidden_size],
                Component::Norm,
            )
        },
        embedding: vocabulary(names::EMBEDDING, input, Component::Embedding),
        head: (!tied).then(head),
    }
}

/// The parts of layer `index`.
pub fn layer(config: &ModelConfig, index: usize) -> Layer<MatrixPart, VectorPart> {
    let parts = LayerParts { config, index };
    let norm = |tensor| parts.vector(tensor, &[config.hidden_size], Component::Norm);
    Layer {
        mixer_norm: norm(names::MIXER_NORM),
        mixer: match (config.mixers[index], config.mamba) {
            (MixerKind::Mamba, Some(shape)) => Mixer::Mamba(parts.mamba(shape)),
            _ => Mixer::Attention(parts.attention()),
        },
        feed_forward_norm: norm(names::FEED_FORWARD_NORM),
        feed_forward: match config.experts {
            Some(shape) => FeedForward::Experts(parts.experts(shape)),
            None => FeedForward::Dense(parts.dense()),
        },
    }
}

fn vector(name: String, shape: &[usize], component: Component) -> VectorPart {
    VectorPart {
        name,
        shape: shape.to_vec(),
        logarithm: None,
        lanes: None,
        divisor: 1.0,
        component,
    }
}

/// The parts of one layer.
#[derive(Clone, Copy)]
struct LayerParts<'a> {
    config: &'a ModelConfig,
    index: usize,
}

impl LayerParts<'_> {
    fn name(self, tensor: TensorName) -> String {
        tensor.in_layer(self.index)
    }

    fn rows(self, tensor: TensorName, count: usize) -> Rows {
        Rows::all(self.name(tensor), count)
    }

    /// All rows of a tensor, which are the outputs that are added to the residual stream.
    fn outputs(self, tensor: TensorName) -> Columns {
        Columns::whole(self.name(tensor), self.config.hidden_size)
    }

    /// A matrix that reads the residual stream. Its name in a packed file follows `model.layers.N.`.
    fn reading(
        self,
        name: &str,
        columns: Columns,
        input: Input,
        component: Component,
    ) -> MatrixPart {
        MatrixPart {
            name: format!("model.layers.{}.{name}", self.index),
            layer: Some(self.index),
            columns,
            depth: self.config.hidden_size,
            experts: None,
            input: Some(input),
            factor: 1.0,
            component,
        }
    }

    /// A matrix of `depth` inputs that adds to the residual stream.
    fn adding(
        self,
        name: &str,
        columns: Columns,
        depth: usize,
        input: Input,
        component: Component,
    ) -> MatrixPart {
        MatrixPart {
            depth,
            factor: self.config.residual_multiplier,
            ..self.reading(name, columns, input, component)
        }
    }

    fn vector(self, tensor: TensorName, shape: &[usize], component: Component) -> VectorPart {
        vector(self.name(tensor), shape, component)
    }

    fn attention(self) -> Attention<MatrixPart> {
        let config = self.config;
        let queries = config.num_heads * config.head_dim;
        let keys = config.num_kv_heads * config.head_dim;
        let qkv = Columns::Stacked(vec![
            self.rows(names::QUERY, queries),
            self.rows(names::KEY, keys),
            self.rows(names::VALUE, keys),
        ]);
        let (output, component) = (self.outputs(names::OUTPUT), Component::Attention);
        Attention {
            qkv: self.reading("self_attn.qkv_proj", qkv, Input::Mixer, component),
            output: self.adding(
                "self_attn.o_proj",
                output,
                queries,
                Input::Output,
                component,
            ),
        }
    }

    fn mamba(self, shape: config::Mamba) -> Mamba<MatrixPart, VectorPart> {
        let (inner, heads) = (shape.inner(), shape.heads);
        let input = Columns::whole(self.name(names::MAMBA_IN), shape.projected());
        let output = self.outputs(names::MAMBA_OUT);
        let component = Component::Mamba;
        let vector = |tensor, len| self.vector(tensor, &[len], component);
        let taps = [shape.convolved(), 1, CONVOLUTION_TAPS];
        Mamba {
            input: self.reading("mamba.in_proj", input, Input::Mixer, component),
            taps: VectorPart {
                lanes: Some(PANEL),
                ..self.vector(names::MAMBA_CONVOLUTION, &taps, component)
            },
            convolution_bias: vector(names::MAMBA_CONVOLUTION_BIAS, shape.convolved()),
            rate: VectorPart {
                logarithm: Some(self.name(names::MAMBA_RATE_LOGARITHM)),
                ..vector(names::MAMBA_RATE, heads)
            },
            skip: vector(names::MAMBA_SKIP, heads),
            step_bias: vector(names::MAMBA_STEP_BIAS, heads),
            norm: vector(names::MAMBA_NORM, inner),
            output: self.adding("mamba.out_proj", output, inner, Input::Output, component),
        }
    }

    /// The feed-forward layer that all tokens pass.
    fn dense(self) -> SwiGlu<MatrixPart> {
        let width = self.config.intermediate_size;
        let (gate_up, down) = match self.config.architecture {
            Architecture::Granite | Architecture::GraniteMoe | Architecture::Llama => (
                [self.rows(names::GATE, width), self.rows(names::UP, width)],
                names::DOWN,
            ),
            Architecture::GraniteMoeShared | Architecture::GraniteHybrid => (
                Rows::halves(self.name(names::SHARED_GATE_UP), 2 * width),
                names::SHARED_DOWN,
            ),
        };
        let gate_up = Columns::Interleaved(vec![gate_up]);
        let (down, component) = (self.outputs(down), Component::FeedForward);
        SwiGlu {
            gate_up: self.reading("mlp.gate_up_proj", gate_up, Input::FeedForward, component),
            down: self.adding("mlp.down_proj", down, width, Input::Down, component),
        }
    }

    fn experts(self, shape: config::Experts) -> Experts<MatrixPart, VectorPart> {
        let (hidden, component) = (self.config.hidden_size, Component::Experts);
        let config::Experts { count, width, .. } = shape;
        let parts = |tensor, each| Rows::parts(self.name(tensor), count * each, count);
        let gate_up = parts(names::EXPERTS_GATE_UP, 2 * width).into_iter();
        let gate_up = Columns::Interleaved(gate_up.map(Rows::in_halves).collect());
        let down = Columns::Stacked(parts(names::EXPERTS_DOWN, hidden));
        let (input, gated) = (Input::FeedForward, Input::ExpertsDown);
        let router = self.vector(names::ROUTER, &[count, hidden], Component::Router);
        Experts {
            shared: (self.config.intermediate_size > 0).then(|| self.dense()),
            router: VectorPart {
                lanes: Some(ROUTER_LANES),
                ..router
            },
            experts: SwiGlu {
                gate_up: MatrixPart {
                    experts: Some(shape),
                    ..self.reading("experts.gate_up_proj", gate_up, input, component)
                },
                down: MatrixPart {
                    experts: Some(shape),
                    ..self.adding("experts.down_proj", down, width, gated, component)
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::shapes;

    #[test]
    fn a_gguf_file_can_hold_every_tensor_of_a_granite_of_each_kind() {
        use names::in_gguf::{ATTENTION, DENSE, DENSE_OF_HYBRID, EXPERTS, MAMBA, MODEL, NORMS};
        for (shape, feed_forward) in [
            ("granite-3.3-2b", DENSE),
            ("granite-4.0-h-1b", DENSE_OF_HYBRID),
            ("granite-4.0-h-tiny", EXPERTS),
            ("granite-3.1-1b-a400m", EXPERTS),
        ] {
            let config = ModelConfig {
                tie_word_embeddings: false,
                ..shapes::named(shape).expect("a published shape")
            };
            let of_layer = |layer| {
                let mixer = match config.mixers[layer] {
                    MixerKind::Attention => ATTENTION,
                    MixerKind::Mamba => MAMBA,
                };
                let tensors = [NORMS, mixer, feed_forward].concat();
                tensors.into_iter().map(move |name| name.in_layer(layer))
            };
            let mut known: Vec<String> = MODEL.iter().map(|name| name.whole()).collect();
            known.extend((0..config.num_layers()).flat_map(of_layer));
            let blueprint = blueprint(&config);
            let matrices = blueprint.matrices().into_iter();
            let mut tensors: Vec<&str> = matrices
                .flat_map(|part| part.columns.tensors().map(|(tensor, _)| tensor))
                .collect();
            tensors.extend(blueprint.vectors().iter().map(|part| part.name.as_str()));
            for tensor in tensors {
                assert!(known.iter().any(|name| name == tensor), "{shape}: {tensor}");
            }
        }
    }
}
