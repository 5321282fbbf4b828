//! All weights of a model as packed int8 matrices.

use super::tensors::{
    Columns, EMBEDDING, FINAL_NORM, HEAD, Rows, check_shapes, elements, feed_forward_rows,
};
use super::{ModelConfig, WeightMemory};
use crate::error::Result;
use crate::int8::PANEL;
use crate::int8::kernels::Kernel;
use crate::int8::kernels::pool::Pool;
use crate::int8::matrix::Matrix;
use crate::sources::Tensors;

/// All weights of a model.
pub struct Weights {
    /// The embedding, which is also the head when tied: `[vocab][hidden]`.
    pub embedding: Matrix,
    /// The head, when it is a matrix of its own.
    pub head: Option<Matrix>,
    /// The blocks in order.
    pub layers: Vec<Layer>,
    /// The last norm, with the division by `logits_scaling` folded in.
    pub final_norm: Vec<f32>,
}

/// One block.
pub struct Layer {
    /// Norm before attention: `[hidden]`.
    pub attention_norm: Vec<f32>,
    /// Queries, keys and values stacked: `[(heads + 2·kv_heads)·head_dim][hidden]`.
    pub qkv: Matrix,
    /// Attention output, `residual_multiplier` folded in: `[hidden][heads·head_dim]`.
    pub output: Matrix,
    /// Norm before the feed-forward layer: `[hidden]`.
    pub feed_forward_norm: Vec<f32>,
    /// Gate and up, 32 columns of each to a panel: `[2·intermediate][hidden]`.
    pub gate_up: Matrix,
    /// Down, `residual_multiplier` folded in: `[hidden][intermediate]`.
    pub down: Matrix,
}

/// Reads, rotates and quantizes every tensor (codes that a checkpoint has already are kept as they are), one panel at a time on each thread, so the float model is never whole in
/// memory. `progress` hears of values done and values in all.
///
/// # Errors
/// [`crate::error::Error::BadModel`] for a tensor that is missing, has the wrong shape, is not finite or does not belong.
pub fn load(
    config: &ModelConfig,
    tensors: &dyn Tensors,
    kernel: Kernel,
    pool: &mut Pool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Weights> {
    check_shapes(config, tensors)?;
    let total = elements(config);
    let mut done = 0;
    let mut matrix = |columns: Columns, depth: usize, pool: &mut Pool| -> Result<Matrix> {
        let count = columns.padded_count();
        let matrix = if columns.have_codes(tensors)? {
            Matrix::from_codes(count, depth, pool, |panel, out| {
                columns.read_codes(tensors, depth, panel, out)
            })?
        } else {
            Matrix::pack(count, depth, kernel, pool, |panel, out| {
                columns.read(tensors, depth, panel, out)
            })?
        };
        done += (columns.count() * depth) as u64;
        progress(done, total);
        Ok(matrix)
    };
    let vector = |name: &str, len: usize| -> Result<Vec<f32>> {
        let mut out = vec![0.0; len];
        tensors.read_rows(name, 0..1, &mut out)?;
        Ok(out)
    };
    let (hidden, attention) = (config.hidden_size, config.num_heads * config.head_dim);
    let kv = config.num_kv_heads * config.head_dim;

    let embedding = matrix(Columns::whole(EMBEDDING, config.vocab_size), hidden, pool)?;
    let head = match config.tie_word_embeddings {
        true => None,
        false => Some(matrix(
            Columns::whole(HEAD, config.vocab_size),
            hidden,
            pool,
        )?),
    };
    let mut layers = Vec::with_capacity(config.num_layers);
    for layer in 0..config.num_layers {
        let name = |suffix: &str| format!("model.layers.{layer}.{suffix}.weight");
        let qkv = Columns::Stacked(vec![
            Rows::all(name("self_attn.q_proj"), attention),
            Rows::all(name("self_attn.k_proj"), kv),
            Rows::all(name("self_attn.v_proj"), kv),
        ]);
        let (gate_up, down) = feed_forward_rows(config, &name);
        let mut layer = Layer {
            attention_norm: vector(&name("input_layernorm"), hidden)?,
            qkv: matrix(qkv, hidden, pool)?,
            output: matrix(
                Columns::whole(&name("self_attn.o_proj"), hidden),
                attention,
                pool,
            )?,
            feed_forward_norm: vector(&name("post_attention_layernorm"), hidden)?,
            gate_up: matrix(gate_up, hidden, pool)?,
            down: matrix(Columns::Stacked(vec![down]), config.intermediate_size, pool)?,
        };
        layer.output.fold(config.residual_multiplier);
        layer.down.fold(config.residual_multiplier);
        layers.push(layer);
    }
    let mut final_norm = vector(FINAL_NORM, hidden)?;
    final_norm
        .iter_mut()
        .for_each(|weight| *weight /= config.logits_scaling);
    Ok(Weights {
        embedding,
        head,
        layers,
        final_norm,
    })
}

/// Weights of the right shapes with random codes and unit norms.
pub fn random(config: &ModelConfig, pool: &mut Pool) -> Weights {
    let (hidden, width) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (
        config.num_heads * config.head_dim,
        config.num_kv_heads * config.head_dim,
    );
    let gate_up = 2 * width.next_multiple_of(PANEL / 2);
    let mut layer = || Layer {
        attention_norm: vec![1.0; hidden],
        qkv: Matrix::random(q + 2 * kv, hidden, pool),
        output: Matrix::random(hidden, q, pool),
        feed_forward_norm: vec![1.0; hidden],
        gate_up: Matrix::random(gate_up, hidden, pool),
        down: Matrix::random(hidden, width, pool),
    };
    let layers = (0..config.num_layers).map(|_| layer()).collect();
    let head =
        (!config.tie_word_embeddings).then(|| Matrix::random(config.vocab_size, hidden, pool));
    let final_norm = vec![1.0 / config.logits_scaling; hidden];
    Weights {
        embedding: Matrix::random(config.vocab_size, hidden, pool),
        head,
        layers,
        final_norm,
    }
}

impl Weights {
    /// Bytes that one decoding step reads: every matrix once, the embedding only as the head.
    pub fn bytes_per_step(&self) -> u64 {
        self.layers
            .iter()
            .flat_map(|layer| [&layer.qkv, &layer.output, &layer.gate_up, &layer.down])
            .chain(std::iter::once(
                self.head.as_ref().unwrap_or(&self.embedding),
            ))
            .map(|matrix| matrix.bytes().0 + matrix.bytes().1)
            .sum()
    }

    /// Int8 multiplications and additions per prompt token in the blocks, and per row of logits in the head.
    pub fn operations(&self) -> (u64, u64) {
        let of = |matrix: &Matrix| 2 * (matrix.columns() * matrix.depth()) as u64;
        let layer = |layer: &Layer| {
            of(&layer.qkv) + of(&layer.output) + of(&layer.gate_up) + of(&layer.down)
        };
        (
            self.layers.iter().map(layer).sum(),
            of(self.head.as_ref().unwrap_or(&self.embedding)),
        )
    }

    /// Bytes as held, by component.
    pub fn memory(&self, elements: u64) -> WeightMemory {
        let mut parts = Vec::new();
        let mut add = |component, matrices: &mut dyn Iterator<Item = &Matrix>| {
            let (codes, scales) = matrices
                .map(Matrix::bytes)
                .fold((0, 0), |sum, b| (sum.0 + b.0, sum.1 + b.1));
            parts.extend([(component, "int8", codes), (component, "f32", scales)]);
        };
        add("embedding", &mut std::iter::once(&self.embedding));
        if let Some(head) = &self.head {
            add("head", &mut std::iter::once(head));
        }
        add(
            "attention",
            &mut self
                .layers
                .iter()
                .flat_map(|layer| [&layer.qkv, &layer.output]),
        );
        add(
            "feed_forward",
            &mut self
                .layers
                .iter()
                .flat_map(|layer| [&layer.gate_up, &layer.down]),
        );
        let norms = self
            .layers
            .iter()
            .map(|layer| layer.attention_norm.len() + layer.feed_forward_norm.len());
        let norms = norms.sum::<usize>() + self.final_norm.len();
        parts.push(("norm", "f32", (norms * size_of::<f32>()) as u64));
        WeightMemory { parts, elements }
    }
}
