//! The states that Mamba-2 layers keep of running sequences: a fixed number of bytes each, however long the sequence.

use super::config::{CONVOLUTION_TAPS, Mamba, MixerKind, ModelConfig};
use super::lazy::Lazy;
use crate::config::ByteSize;
use crate::error::{Error, Result};
use crate::int8::PANEL;
use crate::int8::kernels::pool::Slots;

/// Earlier rows that a convolution looks at.
pub const WINDOW: usize = CONVOLUTION_TAPS - 1;

/// The states of all layers, with a slot for each running sequence.
pub struct States {
    layers: Vec<LayerStates>,
}

/// The states of one layer. All of it is divided by panels of 64 channels, so that threads can work on different panels
/// of a sequence at the same time.
pub struct LayerStates {
    shape: Mamba,
    /// The last inputs of the convolution, oldest first: `[slot][convolved/64][3][64]`.
    windows: Lazy<f32>,
    /// The state of each channel: `[slot][inner/64][columns of a head in the panel][state_size][columns]`.
    states: Lazy<f32>,
}

impl LayerStates {
    /// The shape of the layer.
    pub const fn shape(&self) -> Mamba {
        self.shape
    }

    /// The windows as parts with one unit per panel of convolved channels.
    pub fn windows(&mut self) -> Slots<'_, f32> {
        let panels = self.shape.convolved() / PANEL;
        Slots::new(&mut self.windows, panels, WINDOW * PANEL)
    }

    /// The states as parts with one unit per panel of channels.
    pub fn states(&mut self) -> Slots<'_, f32> {
        let panels = self.shape.inner() / PANEL;
        Slots::new(&mut self.states, panels, PANEL * self.shape.state_size)
    }
}

impl Mamba {
    /// Bytes that one layer keeps of one sequence.
    const fn state_bytes(self) -> usize {
        (WINDOW * self.convolved() + self.inner() * self.state_size) * size_of::<f32>()
    }
}

impl States {
    /// Bytes that all layers keep of one sequence; 0 if the model has no Mamba-2 layers.
    pub fn bytes_per_slot(config: &ModelConfig) -> usize {
        let layers = config.layers_with(MixerKind::Mamba);
        config.mamba.map_or(0, |shape| layers * shape.state_bytes())
    }

    /// Reserves `slots` slots. The system allocates the memory when they are first written.
    ///
    /// # Errors
    /// [`Error::Config`] if the system cannot provide the address space.
    pub fn new(config: &ModelConfig, slots: usize) -> Result<Self> {
        let Some(shape) = config.mamba else {
            return Ok(Self { layers: Vec::new() });
        };
        let layer = |_| {
            Ok(LayerStates {
                shape,
                windows: Lazy::zeroed(slots * shape.convolved() * WINDOW)?,
                states: Lazy::zeroed(slots * shape.inner() * shape.state_size)?,
            })
        };
        let layers = (0..config.layers_with(MixerKind::Mamba)).map(layer);
        let layers = layers.collect::<std::io::Result<_>>();
        let layers = layers.map_err(|problem| {
            let state = Self::bytes_per_slot(config) as u64;
            let (size, state) = (ByteSize(state * slots as u64), ByteSize(state));
            Error::Config(format!(
                "no memory for states of {size} ({slots} of {state}): {problem}"
            ))
        })?;
        Ok(Self { layers })
    }

    /// The Mamba-2 layer that `index` others come before.
    pub fn layer(&mut self, index: usize) -> &mut LayerStates {
        &mut self.layers[index]
    }

    /// Fills every state with `value`.
    pub fn fill(&mut self, value: f32) {
        for layer in &mut self.layers {
            layer.windows.fill(value);
            layer.states.fill(value);
        }
    }
}
