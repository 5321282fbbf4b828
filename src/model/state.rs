//! The states that Mamba-2 layers keep of running sequences: a fixed number of bytes each, however long the sequence.

use std::ops::Range;

use super::config::{CONVOLUTION_TAPS, Mamba, MixerKind, ModelConfig};
use super::forward::{Save, Span};
use super::lazy::Lazy;
use crate::config::ByteSize;
use crate::error::{Error, Result};
use crate::int8::PANEL;
use crate::int8::kernels::pool::{SlotUnits, Slots};

/// Earlier rows that a convolution looks at.
pub const WINDOW: usize = CONVOLUTION_TAPS - 1;

/// The states of all layers, with a slot for each running sequence, and behind those one for each snapshot.
pub struct States {
    layers: Vec<LayerStates>,
    snapshots: usize,
}

/// The states of one layer. All of it is divided by panels of 64 channels, so that threads can work on different panels
/// of a sequence at the same time.
pub struct LayerStates {
    shape: Mamba,
    /// The slots of sequences; those behind them are of snapshots.
    slots: usize,
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

    /// The slots of sequences, behind which those of snapshots begin.
    pub const fn slots(&self) -> usize {
        self.slots
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

/// Where a span reads and writes a part of its state.
#[derive(Clone, Copy)]
pub struct Places<'a> {
    slot: usize,
    is_fresh: bool,
    /// The snapshot's slot.
    restore: Option<usize>,
    saves: &'a [Save],
    slots: usize,
    rows: usize,
    certain: usize,
}

impl<'a> Places<'a> {
    /// Those of `span`, where the slots of snapshots begin behind `slots` slots of sequences.
    pub fn of(span: &Span<'a>, slots: usize) -> Self {
        Self {
            slot: span.slot as usize,
            is_fresh: span.start == 0,
            restore: span.restore.map(|snapshot| slots + snapshot as usize),
            saves: span.saves,
            slots,
            rows: span.tokens.len(),
            certain: span.certain,
        }
    }

    /// Runs the rows of a span over unit `unit` of its state: `run(rows, state)` for consecutive ranges of rows. The
    /// state begins fresh, restored or where it was, is copied to the snapshots to take, and is left as the last certain
    /// row makes it. Drafts run on a copy in `scratch`, which is as long as a unit.
    pub fn run(
        self,
        parts: &mut SlotUnits<'_, f32>,
        unit: usize,
        scratch: &mut [f32],
        mut run: impl FnMut(Range<usize>, &mut [f32]),
    ) {
        if let Some(restore) = self.restore {
            parts.copy(restore, self.slot, unit);
        } else if self.is_fresh {
            parts.get(self.slot, unit).fill(0.0);
        }
        let certain = self.certain.min(self.rows);
        let mut done = 0;
        for save in self.saves {
            run(done..save.rows, parts.get(self.slot, unit));
            parts.copy(self.slot, self.slots + save.snapshot as usize, unit);
            done = save.rows;
        }
        if done < certain {
            run(done..certain, parts.get(self.slot, unit));
        }
        if certain < self.rows {
            scratch.copy_from_slice(parts.get(self.slot, unit));
            run(certain..self.rows, scratch);
        }
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

    /// Reserves `slots` slots and `snapshots` snapshots. The system allocates the memory when they are first written.
    ///
    /// # Errors
    /// [`Error::Config`] if the system cannot provide the address space.
    pub fn new(config: &ModelConfig, slots: usize, snapshots: usize) -> Result<Self> {
        let Some(shape) = config.mamba else {
            return Ok(Self {
                layers: Vec::new(),
                snapshots: 0,
            });
        };
        let all = slots + snapshots;
        let layer = |_| {
            Ok(LayerStates {
                shape,
                slots,
                windows: Lazy::zeroed(all * shape.convolved() * WINDOW)?,
                states: Lazy::zeroed(all * shape.inner() * shape.state_size)?,
            })
        };
        let layers = (0..config.layers_with(MixerKind::Mamba)).map(layer);
        let layers = layers.collect::<std::io::Result<_>>();
        let layers = layers.map_err(|problem| {
            let state = Self::bytes_per_slot(config) as u64;
            let (size, state) = (ByteSize(state * all as u64), ByteSize(state));
            Error::Config(format!(
                "no memory for states of {size} ({all} of {state}): {problem}"
            ))
        })?;
        Ok(Self { layers, snapshots })
    }

    /// Number of snapshots.
    pub const fn snapshots(&self) -> usize {
        self.snapshots
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
