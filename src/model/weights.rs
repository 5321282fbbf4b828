//! All weights of a model as packed int8 matrices.

use super::parts::{MatrixPart, NormPart, Source};
use super::tensors::{check_shapes, elements};
use super::{ModelConfig, WeightMemory, parts};
use crate::error::Result;
use crate::int8::PANEL;
use crate::int8::compensate::Factor;
use crate::int8::kernels::Kernel;
use crate::int8::kernels::pool::Pool;
use crate::int8::matrix::Matrix;
use crate::int8::quantize::Loss;
use crate::int8::rotation::Rotation;
use crate::int8::scheme::{Mapping, Scheme};
use crate::sources::{CodeRows, Tensors};

/// All weights of a model, or what stands for them: `M` for a matrix, `N` for a norm.
pub struct Weights<M = Matrix, N = Vec<f32>> {
    /// The embedding, which is also the head when tied: `[vocab][hidden]`.
    pub embedding: M,
    /// The head, when it is a matrix of its own.
    pub head: Option<M>,
    /// The blocks in order.
    pub layers: Vec<Layer<M, N>>,
    /// The last norm, with the division by `logits_scaling` folded in.
    pub final_norm: N,
}

/// One block.
pub struct Layer<M = Matrix, N = Vec<f32>> {
    /// Norm before attention: `[hidden]`.
    pub attention_norm: N,
    /// Queries, keys and values stacked: `[(heads + 2·kv_heads)·head_dim][hidden]`.
    pub qkv: M,
    /// Attention output, `residual_multiplier` folded in: `[hidden][heads·head_dim]`.
    pub output: M,
    /// Norm before the feed-forward layer: `[hidden]`.
    pub feed_forward_norm: N,
    /// Gate and up, 32 columns of each to a panel: `[2·intermediate][hidden]`.
    pub gate_up: M,
    /// Down, `residual_multiplier` folded in: `[hidden][intermediate]`.
    pub down: M,
}

/// Reads, rotates and quantizes every tensor, one panel at a time on each thread, so the float model is never whole in
/// memory; codes that a checkpoint has already are kept as they are. `progress` hears of values done and values in all.
///
/// # Errors
/// [`crate::error::Error::BadModel`] for a tensor that is missing, has the wrong shape, is not finite or does not belong.
pub fn load(
    config: &ModelConfig,
    tensors: &dyn Tensors,
    scheme: &Scheme,
    kernel: Kernel,
    pool: &mut Pool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Weights> {
    let mut quantizer = Quantizer::new(config, tensors, scheme, kernel, pool, progress)?;
    Ok(parts::read(config, &mut quantizer)?.folded(config))
}

/// Makes the parts of a model from a float checkpoint.
pub struct Quantizer<'a> {
    tensors: &'a dyn Tensors,
    scheme: &'a Scheme,
    kernel: Kernel,
    pool: &'a mut Pool,
    progress: &'a mut dyn FnMut(u64, u64),
    done: u64,
    total: u64,
}

impl<'a> Quantizer<'a> {
    /// Checks that the checkpoint holds exactly what `config` asks for.
    pub fn new(
        config: &ModelConfig,
        tensors: &'a dyn Tensors,
        scheme: &'a Scheme,
        kernel: Kernel,
        pool: &'a mut Pool,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        check_shapes(config, tensors)?;
        Ok(Self {
            tensors,
            scheme,
            kernel,
            pool,
            progress,
            done: 0,
            total: elements(config),
        })
    }

    /// The compute threads and their kernel.
    pub const fn compute(&mut self) -> (Kernel, &mut Pool) {
        (self.kernel, self.pool)
    }

    /// The matrix and what rounding lost: nothing where the checkpoint has codes already. `factors` say how errors are
    /// compensated, if there are any.
    ///
    /// # Errors
    /// [`crate::error::Error::BadModel`] if a weight is not finite.
    pub fn quantize(&mut self, part: &MatrixPart, factors: &[Factor]) -> Result<(Matrix, Loss)> {
        let MatrixPart { columns, depth, .. } = part;
        let (tensors, count) = (self.tensors, columns.padded_count());
        let scheme = scheme_of(part, tensors, self.scheme)?;
        let packed = if columns.have_codes(tensors)? {
            let zero_points = scheme.mapping == Mapping::Affine;
            let fill = |panel, out: CodeRows<'_>| columns.read_codes(tensors, *depth, panel, out);
            let matrix = Matrix::from_codes(count, *depth, zero_points, self.pool, fill)?;
            (matrix, Loss::default())
        } else {
            let fill = |panel, out: &mut [f32]| columns.read(tensors, *depth, panel, out);
            let (kernel, pool) = (self.kernel, &mut *self.pool);
            Matrix::pack(count, *depth, &scheme, factors, kernel, pool, fill)?
        };
        self.done += (columns.count() * depth) as u64;
        (self.progress)(self.done, self.total);
        Ok(packed)
    }
}

/// How a part is mapped: as asked, or as its codes were made if the checkpoint has codes already.
///
/// # Errors
/// [`crate::error::Error::BadModel`] if only some of the part's tensors are codes.
pub fn scheme_of(part: &MatrixPart, tensors: &dyn Tensors, asked: &Scheme) -> Result<Scheme> {
    if !part.columns.have_codes(tensors)? {
        return Ok(*asked);
    }
    let mut names = part.columns.tensors();
    Ok(Scheme {
        mapping: match names.any(|name| tensors.has_zero_points(name)) {
            true => Mapping::Affine,
            false => Mapping::Symmetric,
        },
        rotation: Rotation::None,
        ..Scheme::default()
    })
}

impl Source for Quantizer<'_> {
    type Matrix = Matrix;
    type Norm = Vec<f32>;

    fn matrix(&mut self, part: &MatrixPart) -> Result<Matrix> {
        Ok(self.quantize(part, &[])?.0)
    }

    fn norm(&mut self, part: &NormPart) -> Result<Vec<f32>> {
        let mut out = vec![0.0; part.len];
        self.tensors.read_rows(&part.name, 0..1, &mut out)?;
        Ok(out)
    }
}

/// Weights of the right shapes with random codes and unit norms.
///
/// # Errors
/// [`crate::error::Error::Config`] if there is no memory for them.
pub fn random(config: &ModelConfig, pool: &mut Pool) -> Result<Weights> {
    let (hidden, width) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (
        config.num_heads * config.head_dim,
        config.num_kv_heads * config.head_dim,
    );
    let gate_up = 2 * width.next_multiple_of(PANEL / 2);
    let mut layer = || {
        Ok(Layer {
            attention_norm: vec![1.0; hidden],
            qkv: Matrix::random(q + 2 * kv, hidden, pool)?,
            output: Matrix::random(hidden, q, pool)?,
            feed_forward_norm: vec![1.0; hidden],
            gate_up: Matrix::random(gate_up, hidden, pool)?,
            down: Matrix::random(hidden, width, pool)?,
        })
    };
    let layers = (0..config.num_layers)
        .map(|_| layer())
        .collect::<Result<_>>()?;
    let head = match config.tie_word_embeddings {
        true => None,
        false => Some(Matrix::random(config.vocab_size, hidden, pool)?),
    };
    let final_norm = vec![1.0 / config.logits_scaling; hidden];
    Ok(Weights {
        embedding: Matrix::random(config.vocab_size, hidden, pool)?,
        head,
        layers,
        final_norm,
    })
}

impl Weights {
    /// Folds the constants of the model into scales and the last norm, where they cost nothing.
    pub fn folded(mut self, config: &ModelConfig) -> Self {
        for layer in &mut self.layers {
            layer.output.fold(config.residual_multiplier);
            layer.down.fold(config.residual_multiplier);
        }
        let norm = self.final_norm.iter_mut();
        norm.for_each(|weight| *weight /= config.logits_scaling);
        self
    }

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
