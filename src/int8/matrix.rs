//! Packed weights.

use bytemuck::{Pod, Zeroable};
use rand::{Rng, SeedableRng};

use super::kernels::Kernel;
use super::kernels::pool::{PerThread, PerUnit, Pool};
use super::{BLOCK_BYTES, CODE_MAX, GROUP, PANEL, ZERO_POINT};
use crate::error::Result;

/// A cache line, so that vector loads never straddle two.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// An int8 matrix of `columns` outputs and `depth` inputs in the kernels' own order.
///
/// Panels of 64 output columns, each one sequential stream of `[k/4][64 columns][4 of k]` bytes; a group is 64 steps of
/// it, the last one as many as are left. Padding has the code 128, which is zero. The rows that were packed are rotated
/// (see [`super`]).
pub struct Matrix {
    columns: usize,
    depth: usize,
    codes: Vec<Line>,
    /// One scale per column, padded with zeros to whole panels.
    scales: Vec<f32>,
}

impl Matrix {
    /// Packs a matrix whose rows (one per output column) are produced panel by panel: `fill(panel, out)` writes the rows
    /// `64 · panel ..` of the float matrix to `out` (`[64][depth]`, zeroed before) and may run on any thread of the pool.
    ///
    /// # Errors
    /// The first error of `fill`, in no particular order.
    pub fn pack(
        columns: usize,
        depth: usize,
        kernel: Kernel,
        pool: &mut Pool,
        fill: impl Fn(usize, &mut [f32]) -> Result<()> + Sync,
    ) -> Result<Self> {
        let panels = columns.div_ceil(PANEL);
        let panel_lines = panel_lines(depth);
        let mut codes = vec![Line([ZERO_POINT as u8; 64]); panels * panel_lines];
        let mut scales = vec![0.0; panels * PANEL];
        let mut outcomes: Vec<(Vec<f32>, Result<()>)> = (0..pool.threads())
            .map(|_| (vec![0.0; PANEL * depth], Ok(())))
            .collect();
        let parts = (
            PerUnit::new(&mut codes, panel_lines),
            PerUnit::new(&mut scales, PANEL),
            PerThread::new(&mut outcomes),
        );
        pool.run(
            panels,
            parts,
            |_, range, (codes, scales, (rows, outcome))| {
                let targets = codes
                    .chunks_exact_mut(panel_lines)
                    .zip(scales.chunks_exact_mut(PANEL));
                for (panel, (codes, scales)) in range.zip(targets) {
                    rows.fill(0.0);
                    *outcome = fill(panel, rows);
                    if outcome.is_err() {
                        return;
                    }
                    pack_panel(kernel, rows, bytemuck::cast_slice_mut(codes), scales);
                }
            },
        );
        outcomes.into_iter().try_for_each(|(_, outcome)| outcome)?;
        Ok(Self {
            columns,
            depth,
            codes,
            scales,
        })
    }

    /// A matrix of random codes, for measuring speed.
    pub fn random(columns: usize, depth: usize, pool: &mut Pool) -> Self {
        let panels = columns.div_ceil(PANEL);
        let panel_lines = panel_lines(depth);
        let mut codes = vec![Line([ZERO_POINT as u8; 64]); panels * panel_lines];
        pool.run(
            panels,
            PerUnit::new(&mut codes, panel_lines),
            |_, range, codes| {
                let mut random = rand_pcg::Pcg64::seed_from_u64(range.start as u64);
                for line in codes {
                    random.fill_bytes(&mut line.0);
                }
            },
        );
        // The standard deviation of the product of unit vectors is then about one, so that nothing overflows.
        let scale = 1.0 / (74.0 * (depth as f32).sqrt());
        Self {
            columns,
            depth,
            codes,
            scales: vec![scale; panels * PANEL],
        }
    }

    /// Number of outputs.
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// Number of inputs.
    pub const fn depth(&self) -> usize {
        self.depth
    }

    /// Number of panels.
    pub const fn panels(&self) -> usize {
        self.columns.div_ceil(PANEL)
    }

    /// Number of groups of K.
    pub const fn groups(&self) -> usize {
        self.depth.div_ceil(GROUP)
    }

    /// One group of one panel: `[steps][64 columns][4 of k]`, 64 steps but in the last group.
    #[inline]
    pub fn block(&self, panel: usize, group: usize) -> &[u8] {
        let codes: &[u8] = bytemuck::cast_slice(&self.codes);
        let len = panel_lines(self.depth) * size_of::<Line>();
        let panel = &codes[panel * len..][..len];
        &panel[group * BLOCK_BYTES..][..BLOCK_BYTES.min(len - group * BLOCK_BYTES)]
    }

    /// The scales of a panel's columns.
    #[inline]
    pub fn scales(&self, panel: usize) -> &[f32; PANEL] {
        self.scales[panel * PANEL..][..PANEL]
            .try_into()
            .expect("scales are padded to whole panels")
    }

    /// Multiplies every scale by `factor`: a constant of the model folded in at no cost.
    pub fn fold(&mut self, factor: f32) {
        self.scales.iter_mut().for_each(|scale| *scale *= factor);
    }

    /// Writes group `group` of output column `column`, dequantized and rotated back, to `out`: an embedding lookup.
    pub fn dequantize_group(&self, kernel: Kernel, column: usize, group: usize, out: &mut [f32]) {
        assert!(column < self.columns && out.len() == GROUP.min(self.depth - group * GROUP));
        let (panel, lane) = (column / PANEL, column % PANEL);
        let (block, scale) = (self.block(panel, group), self.scales[column]);
        for (step, four) in out.chunks_mut(4).enumerate() {
            let codes = &block[(step * PANEL + lane) * 4..][..4];
            for (value, code) in four.iter_mut().zip(codes) {
                *value = (i32::from(*code) - ZERO_POINT) as f32 * scale;
            }
        }
        kernel.rotate(out);
    }

    /// Bytes of codes and of scales as held in memory, padding included.
    pub fn bytes(&self) -> (u64, u64) {
        (
            (self.codes.len() * size_of::<Line>()) as u64,
            (self.scales.len() * size_of::<f32>()) as u64,
        )
    }
}

/// Cache lines of one panel: four to a step of 64 columns by 4 of K.
const fn panel_lines(depth: usize) -> usize {
    depth.div_ceil(4) * PANEL * 4 / size_of::<Line>()
}

/// Rotates and quantizes 64 rows of floats (`[64][depth]`) into one panel.
fn pack_panel(kernel: Kernel, rows: &mut [f32], codes: &mut [u8], scales: &mut [f32]) {
    let depth = rows.len() / PANEL;
    for (row, scale) in rows.chunks_exact_mut(depth).zip(&mut *scales) {
        row.chunks_mut(GROUP).for_each(|group| kernel.rotate(group));
        let largest = row.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        *scale = if largest < 1e-36 {
            0.0
        } else {
            largest / CODE_MAX
        };
    }
    let inverse: Vec<f32> = scales
        .iter()
        .map(|&scale| if scale == 0.0 { 0.0 } else { 1.0 / scale })
        .collect();
    for (step, line) in codes.chunks_exact_mut(PANEL * 4).enumerate() {
        let width = (depth - step * 4).min(4);
        for (column, four) in line.chunks_exact_mut(4).enumerate() {
            let values = &rows[column * depth + step * 4..][..width];
            for (code, value) in four.iter_mut().zip(values) {
                let rounded = (value * inverse[column])
                    .round_ties_even()
                    .clamp(-CODE_MAX, CODE_MAX);
                *code = (rounded as i32 + ZERO_POINT) as u8;
            }
        }
    }
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix {} × {}", self.columns, self.depth)
    }
}
