//! The inputs of the linear layers on a sample text, computed by the f32 reference one layer at a time: only the
//! weights of one layer are in memory, never the whole float model.

use std::collections::HashMap;

use candle_core::{Device, Tensor};

use super::functions::{Look, rms_norm};
use super::linear::{Arithmetic, FloatWeights, internal};
use super::reference::{Layer, Rotary};
use crate::error::{Error, Result};
use crate::int8::GROUP;
use crate::int8::compensate::Factor;
use crate::int8::compute::Compute;
use crate::int8::kernels::Kernel;
use crate::int8::kernels::pool::{PerUnit, Pool};
use crate::int8::rotation::Rotation;
use crate::model::ModelConfig;
use crate::model::blueprint::{Blueprint, Input, blueprint};
use crate::sources::Tensors;

/// Tokens per sequence: enough context to be ordinary text, while attention stays cheap.
pub const SEQUENCE_TOKENS: usize = 512;

/// Runs sequences through the model, layer by layer.
pub struct CalibrationRun<'a> {
    config: &'a ModelConfig,
    blueprint: Blueprint,
    tensors: &'a dyn Tensors,
    /// The residual stream of each sequence, `[len, hidden]`.
    streams: Vec<Tensor>,
    next: usize,
}

impl<'a> CalibrationRun<'a> {
    /// Looks the ids of each sequence up in the embedding.
    ///
    /// # Errors
    /// [`Error::BadModel`] if the embedding cannot be read; [`Error::Internal`] if an id is not below the vocabulary size.
    pub fn new(
        config: &'a ModelConfig,
        tensors: &'a dyn Tensors,
        sequences: &[Vec<u32>],
    ) -> Result<Self> {
        let (hidden, blueprint) = (config.hidden_size, blueprint(config));
        let embedding = &blueprint.embedding.columns.rows()[0].tensor;
        let embed = |ids: &Vec<u32>| {
            let mut values = vec![0.0; ids.len() * hidden];
            for (&id, row) in ids.iter().zip(values.chunks_exact_mut(hidden)) {
                let id = id as usize;
                if id >= config.vocab_size {
                    let problem = format!("token {id} is beyond the vocabulary");
                    return Err(Error::Internal(problem));
                }
                tensors.read_rows(embedding, id..id + 1, row)?;
                row.iter_mut()
                    .for_each(|value| *value *= config.embedding_multiplier);
            }
            Tensor::from_vec(values, (ids.len(), hidden), &Device::Cpu).map_err(internal)
        };
        let filled = sequences.iter().filter(|ids| !ids.is_empty());
        let streams = filled.map(embed).collect::<Result<_>>()?;
        Ok(Self {
            config,
            blueprint,
            tensors,
            streams,
            next: 0,
        })
    }

    const fn weights(&self) -> FloatWeights<'a> {
        FloatWeights {
            tensors: self.tensors,
            arithmetic: Arithmetic::F32,
        }
    }

    /// Runs the next layer, and passes the inputs of its linear layers to `look`.
    ///
    /// # Errors
    /// [`Error::BadModel`] if its weights cannot be read.
    pub fn block(&mut self, look: &mut Look<'_>) -> Result<()> {
        let layer = Layer::load(&self.weights(), &self.blueprint.layers[self.next])?;
        for stream in &mut self.streams {
            let config = self.config;
            let len = stream.dims()[0];
            let rotary = Rotary::of(config, len).map_err(internal)?;
            let output = layer.forward(config, rotary.as_ref(), stream.clone(), look);
            *stream = output.map_err(internal)?;
        }
        self.next += 1;
        Ok(())
    }

    /// Passes the input of the head to `look`, after all layers have run.
    ///
    /// # Errors
    /// [`Error::BadModel`] if the last norm cannot be read.
    pub fn head(&self, look: &mut Look<'_>) -> Result<()> {
        let norm = self.weights().vector(&self.blueprint.final_norm)?;
        for stream in &self.streams {
            let normed = rms_norm(self.config, stream, &norm);
            normed
                .and_then(|normed| look(Input::Head, &normed))
                .map_err(internal)?;
        }
        Ok(())
    }
}

/// The largest magnitude of every input channel of the linear layers, over all tokens.
#[derive(Debug, Default)]
pub struct Maxima(HashMap<Input, Vec<f32>>);

impl Maxima {
    /// The maxima of the next layer of `run`.
    ///
    /// # Errors
    /// As [`CalibrationRun::block`].
    pub(crate) fn of_block(run: &mut CalibrationRun<'_>) -> Result<Self> {
        let mut maxima = HashMap::new();
        run.block(&mut |input, x| {
            let largest: Vec<f32> = x.abs()?.max(0)?.to_vec1()?;
            let all: &mut Vec<f32> = maxima
                .entry(input)
                .or_insert_with(|| vec![0.0; largest.len()]);
            let both = all.iter_mut().zip(&largest);
            both.for_each(|(all, largest)| *all = all.max(*largest));
            Ok(())
        })?;
        Ok(Self(maxima))
    }

    /// The maxima of one input; empty if no token was run.
    pub fn of(&self, input: Input) -> &[f32] {
        self.0.get(&input).map_or(&[], Vec::as_slice)
    }
}

/// Computes the factors that compensate rounding errors, layer by layer while the model is quantized.
pub struct Compensation<'a> {
    run: CalibrationRun<'a>,
    rotation: Rotation,
    moments: HashMap<Input, Moments>,
}

/// Second moments of the rotated groups of an input.
struct Moments {
    width: usize,
    /// One `[len, len]` matrix per group.
    groups: Vec<Tensor>,
}

impl<'a> Compensation<'a> {
    /// Calibrates on the sequences of `run`, for weights that are rotated by `rotation`.
    pub fn new(run: CalibrationRun<'a>, rotation: Rotation) -> Self {
        Self {
            run,
            rotation,
            moments: HashMap::new(),
        }
    }

    /// The factors for the next matrix, whose input is `input`; matrices must come in the order of the model.
    ///
    /// # Errors
    /// As [`CalibrationRun::block`].
    pub fn factors(&mut self, input: Input, compute: &mut Compute) -> Result<Vec<Factor>> {
        let (kernel, rotation) = (compute.kernel, self.rotation);
        if input == Input::Mixer {
            // Those of the layer before.
            self.moments.clear();
        }
        let moments = &mut self.moments;
        let mut look = |input: Input, x: &Tensor| {
            let found = Moments::of(kernel, rotation, x)?;
            match moments.get_mut(&input) {
                Some(all) => all.add(found),
                None => {
                    moments.insert(input, found);
                    Ok(())
                }
            }
        };
        match input {
            Input::Mixer => self.run.block(&mut look)?,
            Input::Head => self.run.head(&mut look)?,
            Input::Output | Input::FeedForward | Input::Down => {}
            // The rows of each expert are too few for moments of their own; its weights are rounded to the nearest.
            Input::ExpertsDown => return Ok(Vec::new()),
        }
        let Some(moments) = self.moments.get(&input) else {
            return Ok(Vec::new());
        };
        moments.factors(&mut compute.pool)
    }
}

impl Moments {
    fn of(kernel: Kernel, rotation: Rotation, x: &Tensor) -> candle_core::Result<Self> {
        let (rows, width) = x.dims2()?;
        let mut values: Vec<f32> = x.flatten_all()?.to_vec1()?;
        for row in values.chunks_exact_mut(width) {
            row.chunks_mut(GROUP)
                .for_each(|group| kernel.rotate(rotation, group));
        }
        let rotated = Tensor::from_vec(values, (rows, width), &Device::Cpu)?;
        let groups = (0..width).step_by(GROUP).map(|first| {
            let len = GROUP.min(width - first);
            let group = rotated.narrow(1, first, len)?.contiguous()?;
            group.t()?.matmul(&group)
        });
        let groups = groups.collect::<candle_core::Result<_>>()?;
        Ok(Self { width, groups })
    }

    fn add(&mut self, other: Self) -> candle_core::Result<()> {
        for (all, more) in self.groups.iter_mut().zip(&other.groups) {
            *all = (&*all + more)?;
        }
        Ok(())
    }

    /// One factor per group, computed on all threads.
    fn factors(&self, pool: &mut Pool) -> Result<Vec<Factor>> {
        let flat = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let moments = self.groups.iter().map(flat);
        let moments = moments.collect::<candle_core::Result<Vec<_>>>();
        let moments = moments.map_err(internal)?;
        let mut factors: Vec<Option<Factor>> = vec![None; moments.len()];
        let parts = PerUnit::new(&mut factors, 1);
        pool.run(moments.len(), parts, |_, range, factors| {
            for (group, factor) in range.zip(factors) {
                let len = GROUP.min(self.width - group * GROUP);
                *factor = Some(Factor::new(&moments[group], len));
            }
        });
        Ok(factors.into_iter().flatten().collect())
    }
}
