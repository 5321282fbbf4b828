//! SmoothQuant (Xiao et al., 2022): moves outliers of activations into weights, at no cost at run time.
//!
//! Channel `j` of a linear layer's input is divided by `s[j]`, and the weights that multiply it are multiplied by
//! `s[j]`: `s = max|x|^α / max|w|^(1−α)`. The division is folded into the weights that produce the channel: a norm, the
//! rows of `up_proj`, or the rows of `v_proj`, for which all query heads of a KV head share a factor. The function that
//! the model computes stays the same.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;

use super::calibrate::{CalibrationRun, Maxima};
use crate::error::Result;
use crate::model::ModelConfig;
use crate::model::blueprint::{self, MatrixPart, VectorPart};
use crate::model::columns::Rows;
use crate::model::weights::{Attention, FeedForward, Layer, Mixer, SwiGlu};
use crate::sources::Tensors;

/// A checkpoint whose tensors are multiplied by factors as they are read.
pub struct Smoothed<'a> {
    inner: &'a dyn Tensors,
    /// For each tensor, a factor per row.
    rows: HashMap<String, Vec<f32>>,
    /// For each tensor, a factor per column.
    columns: HashMap<String, Vec<f32>>,
}

/// The weights that produce an input, into which the division is folded.
enum Origin<'a> {
    /// Each weight of a norm produces one channel.
    Norm(&'a VectorPart),
    /// Each of these rows produces one channel, or the same channel of several heads.
    Rows(&'a Rows),
}

/// Which channels of an input share factors: an input consists of heads of `dim` channels, and `sharing` consecutive
/// heads have the same factors.
#[derive(Clone, Copy)]
struct Heads {
    dim: usize,
    sharing: usize,
}

/// An input whose channels are smoothed.
struct Site<'a> {
    origin: Origin<'a>,
    heads: Heads,
    /// The matrices that multiply it.
    readers: Vec<&'a MatrixPart>,
    /// The router that multiplies it too, but is not quantized.
    router: Option<&'a VectorPart>,
}

impl<'a> Smoothed<'a> {
    /// Computes the factors from the inputs of the linear layers in `run`.
    ///
    /// # Errors
    /// [`crate::error::Error::BadModel`] if a weight cannot be read.
    pub fn new(
        config: &ModelConfig,
        tensors: &'a dyn Tensors,
        mut run: CalibrationRun<'a>,
        alpha: f32,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let mut smoothed = Self {
            inner: tensors,
            rows: HashMap::new(),
            columns: HashMap::new(),
        };
        for layer in 0..config.num_layers() {
            let maxima = Maxima::of_block(&mut run)?;
            let parts = blueprint::layer(config, layer);
            smoothed.add_block(config, &parts, &maxima, alpha)?;
            progress(layer as u64 + 1, config.num_layers() as u64);
        }
        Ok(smoothed)
    }

    fn add_block(
        &mut self,
        config: &ModelConfig,
        layer: &Layer<MatrixPart, VectorPart>,
        maxima: &Maxima,
        alpha: f32,
    ) -> Result<()> {
        let single = Heads { dim: 1, sharing: 1 };
        let heads = Heads {
            dim: config.head_dim,
            sharing: config.num_heads / config.num_kv_heads,
        };
        let of_norm = |norm, readers| Site {
            origin: Origin::Norm(norm),
            heads: single,
            readers,
            router: None,
        };
        let mut sites = Vec::new();
        match &layer.mixer {
            Mixer::Attention(Attention { qkv, output }) => {
                sites.push(of_norm(&layer.mixer_norm, vec![qkv]));
                sites.push(Site {
                    origin: Origin::Rows(&qkv.columns.rows()[2]),
                    heads,
                    readers: vec![output],
                    router: None,
                });
            }
            Mixer::Mamba(mamba) => {
                sites.push(of_norm(&layer.mixer_norm, vec![&mamba.input]));
                sites.push(of_norm(&mamba.norm, vec![&mamba.output]));
            }
        }
        let (dense, experts) = match &layer.feed_forward {
            FeedForward::Dense(dense) => (Some(dense), None),
            FeedForward::Experts(experts) => (experts.shared.as_ref(), Some(experts)),
        };
        let mut readers: Vec<&MatrixPart> = dense.map(|dense| &dense.gate_up).into_iter().collect();
        // What each expert makes of its few rows says too little to smooth the input of its last matrix.
        readers.extend(experts.map(|experts| &experts.experts.gate_up));
        sites.push(Site {
            router: experts.map(|experts| &experts.router),
            ..of_norm(&layer.feed_forward_norm, readers)
        });
        if let Some(SwiGlu { gate_up, down }) = dense {
            sites.push(Site {
                origin: Origin::Rows(&gate_up.columns.rows()[1]),
                heads: single,
                readers: vec![down],
                router: None,
            });
        }
        sites
            .iter()
            .try_for_each(|site| self.add_site(site, maxima, alpha))
    }

    fn add_site(&mut self, site: &Site<'_>, maxima: &Maxima, alpha: f32) -> Result<()> {
        let Site {
            origin,
            heads,
            readers,
            router,
        } = site;
        let input = readers.first().and_then(|reader| reader.input);
        let largest = input.map_or(&[][..], |input| maxima.of(input));
        let factors = self.factors(readers, largest, *heads, alpha)?;
        let inverse = factors
            .chunks_exact(heads.dim)
            // One factor for each value of a KV head: the query heads that share it repeat the factor.
            .step_by(heads.sharing)
            .flatten()
            .map(|factor| 1.0 / factor);
        match origin {
            Origin::Norm(norm) => {
                self.columns.insert(norm.name.clone(), inverse.collect());
            }
            Origin::Rows(rows) => {
                let mut all = vec![1.0; rows.total];
                let own = &mut all[rows.first..][..rows.count];
                own.iter_mut()
                    .zip(inverse)
                    .for_each(|(to, from)| *to = from);
                self.rows.insert(rows.tensor.clone(), all);
            }
        }
        let tensors = readers.iter().flat_map(|reader| reader.columns.tensors());
        let tensors = tensors.map(|(tensor, _)| tensor.to_owned());
        for tensor in tensors.chain(router.map(|router| router.name.clone())) {
            self.columns.insert(tensor, factors.clone());
        }
        Ok(())
    }

    /// The factors of the columns of `readers`, whose input has the maximum magnitudes `largest`.
    fn factors(
        &self,
        readers: &[&MatrixPart],
        largest: &[f32],
        heads: Heads,
        alpha: f32,
    ) -> Result<Vec<f32>> {
        let Heads { dim, sharing } = heads;
        let mut weights = vec![0.0f32; largest.len()];
        let mut row = vec![0.0; largest.len()];
        for (tensor, rows) in readers.iter().flat_map(|reader| reader.columns.tensors()) {
            for index in 0..rows {
                self.inner.read_rows(tensor, index..index + 1, &mut row)?;
                let both = weights.iter_mut().zip(&row);
                both.for_each(|(most, weight)| *most = most.max(weight.abs()));
            }
        }
        let group_of = |column: usize| {
            let (head, value) = (column / dim, column % dim);
            (head / sharing) * dim + value
        };
        let groups = largest.len() / sharing;
        let (mut x, mut w) = (vec![0.0f32; groups], vec![0.0f32; groups]);
        for (column, (largest, weight)) in largest.iter().zip(&weights).enumerate() {
            let group = group_of(column);
            x[group] = x[group].max(*largest);
            w[group] = w[group].max(*weight);
        }
        let factor = |group: usize| {
            let factor = x[group].powf(alpha) / w[group].powf(1.0 - alpha);
            // A channel or a column of zeros needs no smoothing.
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
