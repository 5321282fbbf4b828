//! The states that Mamba-2 layers keep of running sequences: a fixed number of bytes each, however long the sequence.

use std::ops::Range;

use super::config::{CONVOLUTION_TAPS, Mamba, MixerKind, ModelConfig};
use super::forward::{Save, Span};
use super::lazy::Lazy;
use crate::config::ByteSize;
use crate::error::{Error, Result};
use crate::int8::PANEL;
use crate::int8::kernels::pool::{SlotUnits, Slots};
use crate::memory::maps::Addresses;

/// Earlier rows that a convolution looks at.
pub const WINDOW: usize = CONVOLUTION_TAPS - 1;

/// The states of all layers, with a slot for each running sequence, and behind those one for each snapshot. What a
/// sequence has is in one piece, so that huge pages waste none of it.
pub struct States {
    shape: Option<Mamba>,
    layers: usize,
    /// The slots of sequences; those behind them are of snapshots.
    slots: usize,
    snapshots: usize,
    /// The last inputs of the convolution, oldest first: `[slot][layer][convolved/64][3][64]`.
    windows: Lazy<f32>,
    /// The state of each channel: `[slot][layer][inner/64][columns of a head in the panel][state_size][columns]`.
    states: Lazy<f32>,
}

/// The states of one layer. All of it is divided by panels of 64 channels, so that threads can work on different panels
/// of a sequence at the same time.
pub struct LayerStates<'a> {
    shape: Mamba,
    layer: usize,
    layers: usize,
    slots: usize,
    windows: &'a mut [f32],
    states: &'a mut [f32],
}

impl LayerStates<'_> {
    /// The shape of the layer.
    pub const fn shape(&self) -> Mamba {
        self.shape
    }

    /// The slots of sequences, behind which those of snapshots begin.
    pub const fn slots(&self) -> usize {
        self.slots
    }

    /// The windows as parts: one unit for each of `panels`, which are panels of convolved channels.
    pub fn windows(&mut self, panels: Range<usize>) -> Slots<'_, f32> {
        let len = self.shape.window_len();
        let (first, units) = (
            panels.start * WINDOW * PANEL,
            [panels.len(), WINDOW * PANEL],
        );
        let first = self.layer * len + first;
        Slots::new(self.windows, self.layers * len, first, units)
    }

    /// The windows of the channels and their states, as parts with one unit per panel of channels.
    pub fn windows_and_states(&mut self) -> (Slots<'_, f32>, Slots<'_, f32>) {
        let Self {
            shape,
            layer,
            layers,
            windows,
            states,
            ..
        } = self;
        let panels = shape.inner() / PANEL;
        let slots = |values, len: usize, each| {
            Slots::new(values, *layers * len, *layer * len, [panels, each])
        };
        (
            slots(&mut **windows, shape.window_len(), WINDOW * PANEL),
            slots(&mut **states, shape.state_len(), PANEL * shape.state_size),
        )
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
    /// Values that one layer keeps of one sequence's inputs of the convolution.
    const fn window_len(self) -> usize {
        WINDOW * self.convolved()
    }

    /// Values of one sequence's state in one layer.
    const fn state_len(self) -> usize {
        self.inner() * self.state_size
    }
}

impl States {
    /// Bytes that all layers keep of one sequence; 0 if the model has no Mamba-2 layers.
    pub fn bytes_per_slot(config: &ModelConfig) -> usize {
        let layers = config.layers_with(MixerKind::Mamba);
        let len = |shape: Mamba| shape.window_len() + shape.state_len();
        config.mamba.map_or(0, |shape| layers * len(shape)) * size_of::<f32>()
    }

    /// Reserves `slots` slots and `snapshots` snapshots. The system allocates the memory when they are first written.
    ///
    /// # Errors
    /// [`Error::Config`] if the system cannot provide the address space.
    pub fn new(config: &ModelConfig, slots: usize, snapshots: usize) -> Result<Self> {
        let (layers, all) = (config.layers_with(MixerKind::Mamba), slots + snapshots);
        let reserve = |len: fn(Mamba) -> usize| {
            let len = all * layers * config.mamba.map_or(0, len);
            Lazy::in_huge_pages(len).map_err(|problem| {
                let state = Self::bytes_per_slot(config) as u64;
                let (size, state) = (ByteSize(state * all as u64), ByteSize(state));
                Error::Config(format!(
                    "no memory for states of {size} ({all} of {state}): {problem}"
                ))
            })
        };
        Ok(Self {
            shape: config.mamba,
            layers,
            slots,
            snapshots: if layers > 0 { snapshots } else { 0 },
            windows: reserve(Mamba::window_len)?,
            states: reserve(Mamba::state_len)?,
        })
    }

    /// Where the states are.
    pub fn addresses(&self) -> Vec<Addresses> {
        vec![self.windows.addresses(), self.states.addresses()]
    }

    /// Number of snapshots.
    pub const fn snapshots(&self) -> usize {
        self.snapshots
    }

    /// The Mamba-2 layer that `index` others come before.
    ///
    /// # Panics
    /// If the model has none.
    pub fn layer(&mut self, index: usize) -> LayerStates<'_> {
        LayerStates {
            shape: self.shape.expect("a model with Mamba-2 layers"),
            layer: index,
            layers: self.layers,
            slots: self.slots,
            windows: &mut self.windows,
            states: &mut self.states,
        }
    }

    /// Fills every state with `value`.
    pub fn fill(&mut self, value: f32) {
        self.windows.fill(value);
        self.states.fill(value);
    }
}
