//! The parts that a model is put together from, in the order in which they are made and stored.

use super::ModelConfig;
use super::reference::Input;
use super::tensors::{Columns, EMBEDDING, FINAL_NORM, HEAD, Rows, feed_forward_rows};
use super::weights::{Layer, Weights};
use crate::error::Result;

/// A matrix as the kernels use it: the rows of one or several tensors.
pub struct MatrixPart {
    /// Its name in a packed file.
    pub name: String,
    /// Which rows of the checkpoint make its columns.
    pub columns: Columns,
    /// Number of inputs.
    pub depth: usize,
    /// What it multiplies; `None` for an embedding that is looked up only.
    pub input: Option<Input>,
}

/// The weights of a norm.
pub struct NormPart {
    /// Its name in the checkpoint and in a packed file.
    pub name: String,
    /// Number of weights.
    pub len: usize,
}

/// Makes the parts of a model, or something from them.
pub trait Source {
    /// What a matrix becomes.
    type Matrix;
    /// What a norm becomes.
    type Norm;

    /// Makes a matrix.
    ///
    /// # Errors
    /// Whatever keeps it from being made.
    fn matrix(&mut self, part: &MatrixPart) -> Result<Self::Matrix>;

    /// Makes a norm.
    ///
    /// # Errors
    /// Whatever keeps it from being made.
    fn norm(&mut self, part: &NormPart) -> Result<Self::Norm>;
}

/// Asks `source` for every part of a model of this shape, in order.
pub fn read<S: Source>(
    config: &ModelConfig,
    source: &mut S,
) -> Result<Weights<S::Matrix, S::Norm>> {
    let (hidden, attention) = (config.hidden_size, config.num_heads * config.head_dim);
    let kv = config.num_kv_heads * config.head_dim;
    let mut layers = Vec::with_capacity(config.num_layers);
    for layer in 0..config.num_layers {
        let short = |part: &str| format!("model.layers.{layer}.{part}");
        let name = |part: &str| format!("{}.weight", short(part));
        let norm = |part: &str| NormPart {
            name: name(part),
            len: hidden,
        };
        let matrix = |part: &str, columns: Columns, depth, input| MatrixPart {
            name: short(part),
            columns,
            depth,
            input: Some(input),
        };
        let qkv = Columns::Stacked(vec![
            Rows::all(name("self_attn.q_proj"), attention),
            Rows::all(name("self_attn.k_proj"), kv),
            Rows::all(name("self_attn.v_proj"), kv),
        ]);
        let output = Columns::whole(&name("self_attn.o_proj"), hidden);
        let (gate_up, down) = feed_forward_rows(config, &name);
        let down = Columns::Stacked(vec![down]);
        let width = config.intermediate_size;
        layers.push(Layer {
            attention_norm: source.norm(&norm("input_layernorm"))?,
            qkv: source.matrix(&matrix("self_attn.qkv_proj", qkv, hidden, Input::Attention))?,
            output: source.matrix(&matrix(
                "self_attn.o_proj",
                output,
                attention,
                Input::Output,
            ))?,
            feed_forward_norm: source.norm(&norm("post_attention_layernorm"))?,
            gate_up: source.matrix(&matrix(
                "mlp.gate_up_proj",
                gate_up,
                hidden,
                Input::FeedForward,
            ))?,
            down: source.matrix(&matrix("mlp.down_proj", down, width, Input::Down))?,
        });
    }
    let final_norm = source.norm(&NormPart {
        name: FINAL_NORM.into(),
        len: hidden,
    })?;
    // The vocabulary comes last: what the head multiplies is known when all blocks have been run.
    let vocabulary = |name: &str, input| MatrixPart {
        name: name.trim_end_matches(".weight").into(),
        columns: Columns::whole(name, config.vocab_size),
        depth: hidden,
        input,
    };
    let (embedding, head) = match config.tie_word_embeddings {
        true => (
            source.matrix(&vocabulary(EMBEDDING, Some(Input::Head)))?,
            None,
        ),
        false => (
            source.matrix(&vocabulary(EMBEDDING, None))?,
            Some(source.matrix(&vocabulary(HEAD, Some(Input::Head)))?),
        ),
    };
    Ok(Weights {
        embedding,
        head,
        layers,
        final_norm,
    })
}
