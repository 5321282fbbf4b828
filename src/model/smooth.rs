//! SmoothQuant (Xiao et al., 2022): outliers of activations moved into weights, at no cost when the model runs.
//!
//! Channel `j` of what a linear layer multiplies is divided by `s[j]`, and the weights that meet it are multiplied by it:
//! `s = max|x|^α / max|w|^(1−α)`. The division is folded into what makes the channel: a norm, the rows of `up_proj`, or the
//! rows of `v_proj`, where all query heads of a key head share a factor. The model computes the same function.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;

use super::ModelConfig;
use super::calibrate::{Maxima, Walk};
use super::config::Architecture;
use super::reference::Input;
use crate::error::Result;
use crate::sources::Tensors;

/// A checkpoint whose tensors are multiplied by factors as they are read.
pub struct Smoothed<'a> {
    inner: &'a dyn Tensors,
    /// By tensor: a factor for each row.
    rows: HashMap<String, Vec<f32>>,
    /// By tensor: a factor for each column.
    columns: HashMap<String, Vec<f32>>,
}

impl<'a> Smoothed<'a> {
    /// Finds the factors from what the blocks of `walk` multiply.
    ///
    /// # Errors
    /// [`crate::error::Error::BadModel`] if a weight cannot be read.
    pub fn new(
        config: &ModelConfig,
        tensors: &'a dyn Tensors,
        mut walk: Walk<'a>,
        alpha: f32,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let mut smoothed = Self {
            inner: tensors,
            rows: HashMap::new(),
            columns: HashMap::new(),
        };
        for layer in 0..config.num_layers {
            let maxima = Maxima::of_block(&mut walk)?;
            smoothed.add_block(config, layer, &maxima, alpha)?;
            progress(layer as u64 + 1, config.num_layers as u64);
        }
        Ok(smoothed)
    }

    fn add_block(
        &mut self,
        config: &ModelConfig,
        layer: usize,
        maxima: &Maxima,
        alpha: f32,
    ) -> Result<()> {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let (ffn, dim) = (config.intermediate_size, config.head_dim);
        let inverse = |factors: &[f32]| factors.iter().map(|factor| 1.0 / factor).collect();

        let readers = ["q_proj", "k_proj", "v_proj"].map(|part| name(&format!("self_attn.{part}")));
        let factors = self.factors(&readers, maxima.of(Input::Attention), 1, 1, alpha)?;
        self.columns
            .insert(name("input_layernorm"), inverse(&factors));
        for reader in readers {
            self.columns.insert(reader, factors.clone());
        }

        let output = [name("self_attn.o_proj")];
        let shared = config.num_heads / config.num_kv_heads;
        let factors = self.factors(&output, maxima.of(Input::Output), dim, shared, alpha)?;
        // One factor for each value of a key head; the query heads that share it repeat it.
        let first_of_each: Vec<f32> = factors
            .chunks_exact(dim)
            .step_by(shared)
            .flatten()
            .copied()
            .collect();
        self.rows
            .insert(name("self_attn.v_proj"), inverse(&first_of_each));
        let [output] = output;
        self.columns.insert(output, factors);

        let (readers, down): (Vec<String>, _) = match config.architecture {
            Architecture::Granite | Architecture::Llama => (
                vec![name("mlp.gate_proj"), name("mlp.up_proj")],
                name("mlp.down_proj"),
            ),
            Architecture::GraniteHybridDense => (
                vec![name("shared_mlp.input_linear")],
                name("shared_mlp.output_linear"),
            ),
        };
        let factors = self.factors(&readers, maxima.of(Input::FeedForward), 1, 1, alpha)?;
        self.columns
            .insert(name("post_attention_layernorm"), inverse(&factors));
        for reader in &readers {
            self.columns.insert(reader.clone(), factors.clone());
        }
        let down = [down];
        let factors = self.factors(&down, maxima.of(Input::Down), 1, 1, alpha)?;
        let mut up: Vec<f32> = inverse(&factors);
        if readers.len() == 1 {
            // Gate and up in one tensor: the gate's rows come first and stay as they are.
            up = [vec![1.0; ffn], up].concat();
        }
        let last = readers.into_iter().next_back().unwrap_or_default();
        self.rows.insert(last, up);
        let [down] = down;
        self.columns.insert(down, factors);
        Ok(())
    }

    /// The factors of the columns of `readers`, which multiply values of the sizes `largest`. Columns come in heads of
    /// `head` values, and `shared` neighbouring heads get the same factors.
    fn factors(
        &self,
        readers: &[String],
        largest: &[f32],
        head: usize,
        shared: usize,
        alpha: f32,
    ) -> Result<Vec<f32>> {
        let mut weights = vec![0.0f32; largest.len()];
        let mut row = vec![0.0; largest.len()];
        for reader in readers {
            let shape = self.inner.shape(reader).unwrap_or_default();
            for index in 0..shape.first().copied().unwrap_or(0) {
                self.inner.read_rows(reader, index..index + 1, &mut row)?;
                let both = weights.iter_mut().zip(&row);
                both.for_each(|(most, weight)| *most = most.max(weight.abs()));
            }
        }
        let group_of = |column: usize| {
            let (of_head, value) = (column / head, column % head);
            (of_head / shared) * head + value
        };
        let groups = largest.len() / shared;
        let (mut x, mut w) = (vec![0.0f32; groups], vec![0.0f32; groups]);
        for (column, (largest, weight)) in largest.iter().zip(&weights).enumerate() {
            let group = group_of(column);
            x[group] = x[group].max(*largest);
            w[group] = w[group].max(*weight);
        }
        let factor = |group: usize| {
            let factor = x[group].powf(alpha) / w[group].powf(1.0 - alpha);
            // A channel or a column of zeros has nothing to move.
            if factor.is_normal() { factor } else { 1.0 }
        };
        Ok((0..largest.len())
            .map(|column| factor(group_of(column)))
            .collect())
    }
}

impl Tensors for Smoothed<'_> {
    fn file(&self, name: &str) -> PathBuf {
        self.inner.file(name)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.inner.shape(name)
    }

    fn dtype(&self, name: &str) -> Option<&'static str> {
        self.inner.dtype(name)
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.inner.read_rows(name, rows.clone(), out)?;
        let width = out.len() / rows.len().max(1);
        if let Some(factors) = self.columns.get(name) {
            for row in out.chunks_exact_mut(width.max(1)) {
                let both = row.iter_mut().zip(factors);
                both.for_each(|(value, factor)| *value *= factor);
            }
        }
        if let Some(factors) = self.rows.get(name) {
            for (row, factor) in out.chunks_exact_mut(width.max(1)).zip(&factors[rows]) {
                row.iter_mut().for_each(|value| *value *= factor);
            }
        }
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        self.inner.names()
    }

    fn stored_bytes(&self) -> u64 {
        self.inner.stored_bytes()
    }
}
