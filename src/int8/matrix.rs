//! Packed weights.

use rand::{Rng, SeedableRng};

use super::kernels::pool::{PerThread, PerUnit, Pool};
use super::kernels::{Block, Kernel};
use super::memory::Memory;
use super::rotation::Rotation;
use super::{BLOCK_BYTES, CODE_MAX, GROUP, PANEL, ZERO_POINT};
use crate::error::Result;

/// An int8 matrix of `columns` outputs and `depth` inputs in the kernels' own order.
///
/// Panels of 64 output columns, each one sequential stream of `[k/4][64 columns][4 of k]` bytes; a group is 64 steps of
/// it, the last one as many as are left. Padding beyond the columns has scale 0, and beyond the depth meets activations
/// that are 0. The rows that were packed are rotated (see [`super`]).
pub struct Matrix {
    columns: usize,
    depth: usize,
    rotation: Rotation,
    codes: Memory,
    scales: Scales,
}

/// What turns the codes of a matrix into weights: `w = column[n] · group[n][g] · (q − zero_points[n][g])`.
#[derive(Debug, Clone, PartialEq)]
pub struct Scales {
    /// One per column, padded with zeros to whole panels.
    pub column: Vec<f32>,
    /// `[panels][groups][64]`, where groups have scales of their own.
    pub group: Option<Vec<f32>>,
    /// `[panels][groups][64]`, where they are not all 128.
    pub zero_points: Option<Vec<u8>>,
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
        let panel_bytes = panel_bytes(depth);
        let mut codes = Memory::zeroed(panels * panel_bytes);
        let mut scales = vec![0.0; panels * PANEL];
        let mut outcomes: Vec<(Vec<f32>, Result<()>)> = (0..pool.threads())
            .map(|_| (vec![0.0; PANEL * depth], Ok(())))
            .collect();
        let parts = (
            PerUnit::new(codes.bytes_mut(), panel_bytes),
            PerUnit::new(&mut scales, PANEL),
            PerThread::new(&mut outcomes),
        );
        pool.run(
            panels,
            parts,
            |_, range, (codes, scales, (rows, outcome))| {
                let targets = codes
                    .chunks_exact_mut(panel_bytes)
                    .zip(scales.chunks_exact_mut(PANEL));
                for (panel, (codes, scales)) in range.zip(targets) {
                    rows.fill(0.0);
                    *outcome = fill(panel, rows);
                    if outcome.is_err() {
                        return;
                    }
                    pack_panel(kernel, rows, codes, scales);
                }
            },
        );
        outcomes.into_iter().try_for_each(|(_, outcome)| outcome)?;
        let scales = Scales {
            column: scales,
            group: None,
            zero_points: None,
        };
        Ok(Self::from_parts(
            columns,
            depth,
            Rotation::Full,
            codes,
            scales,
        ))
    }

    /// A matrix of codes and scales that were made before.
    ///
    /// # Panics
    /// If a part has not the length that `columns` and `depth` ask for: callers check files before.
    pub fn from_parts(
        columns: usize,
        depth: usize,
        rotation: Rotation,
        codes: Memory,
        scales: Scales,
    ) -> Self {
        let panels = columns.div_ceil(PANEL);
        let grouped = panels * depth.div_ceil(GROUP) * PANEL;
        assert_eq!(codes.bytes().len(), panels * panel_bytes(depth), "codes");
        assert_eq!(scales.column.len(), panels * PANEL, "scales");
        let group_len = scales.group.as_ref().map(Vec::len);
        assert!(group_len.is_none_or(|len| len == grouped), "group scales");
        let zero_len = scales.zero_points.as_ref().map(Vec::len);
        assert!(zero_len.is_none_or(|len| len == grouped), "zero points");
        Self {
            columns,
            depth,
            rotation,
            codes,
            scales,
        }
    }

    /// A matrix of random codes, for measuring speed.
    pub fn random(columns: usize, depth: usize, pool: &mut Pool) -> Self {
        let panels = columns.div_ceil(PANEL);
        let panel_bytes = panel_bytes(depth);
        let mut codes = Memory::zeroed(panels * panel_bytes);
        pool.run(
            panels,
            PerUnit::new(codes.bytes_mut(), panel_bytes),
            |_, range, codes| {
                let mut random = rand_pcg::Pcg64::seed_from_u64(range.start as u64);
                random.fill_bytes(codes);
            },
        );
        // The standard deviation of the product of unit vectors is then about one, so that nothing overflows.
        let scale = 1.0 / (74.0 * (depth as f32).sqrt());
        let scales = Scales {
            column: vec![scale; panels * PANEL],
            group: None,
            zero_points: None,
        };
        Self::from_parts(columns, depth, Rotation::Full, codes, scales)
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

    /// What activations must be rotated by before they meet this matrix.
    pub const fn rotation(&self) -> Rotation {
        self.rotation
    }

    /// The groups of one panel in order: 64 steps each but the last.
    #[inline]
    pub fn blocks(&self, panel: usize) -> impl Iterator<Item = Block<'_>> {
        let len = panel_bytes(self.depth);
        let codes = self.codes.bytes()[panel * len..][..len].chunks(BLOCK_BYTES);
        let first = panel * self.groups();
        let Scales {
            group: scales,
            zero_points,
            ..
        } = &self.scales;
        codes.zip(first..).map(|(codes, block)| Block {
            codes,
            zero_points: (zero_points.as_deref()).map(|all| columns_at(all, block * PANEL)),
            scales: (scales.as_deref()).map(|all| columns_at(all, block * PANEL)),
        })
    }

    /// The scales of a panel's columns.
    #[inline]
    pub fn scales(&self, panel: usize) -> &[f32; PANEL] {
        columns_at(&self.scales.column, panel * PANEL)
    }

    /// Multiplies every scale by `factor`: a constant of the model folded in at no cost.
    pub fn fold(&mut self, factor: f32) {
        let scales = self.scales.column.iter_mut();
        scales.for_each(|scale| *scale *= factor);
    }

    /// Writes group `group` of output column `column`, dequantized and rotated back, to `out`: an embedding lookup.
    pub fn dequantize_group(&self, kernel: Kernel, column: usize, group: usize, out: &mut [f32]) {
        assert!(column < self.columns && out.len() == GROUP.min(self.depth - group * GROUP));
        let (panel, lane) = (column / PANEL, column % PANEL);
        let block = self.blocks(panel).nth(group).expect("a group of the depth");
        let scale = self.scales.column[column] * block.scales.map_or(1.0, |scales| scales[lane]);
        let zero_point = block
            .zero_points
            .map_or(ZERO_POINT, |points| i32::from(points[lane]));
        for (step, four) in out.chunks_mut(4).enumerate() {
            let codes = &block.codes[(step * PANEL + lane) * 4..][..4];
            for (value, code) in four.iter_mut().zip(codes) {
                *value = (i32::from(*code) - zero_point) as f32 * scale;
            }
        }
        kernel.rotate(self.rotation, out);
    }

    /// Bytes of codes and zero points, and of scales, as held in memory, padding included.
    pub fn bytes(&self) -> (u64, u64) {
        let Scales {
            column,
            group,
            zero_points,
        } = &self.scales;
        let codes = self.codes.bytes().len() + zero_points.as_ref().map_or(0, Vec::len);
        let scales = column.len() + group.as_ref().map_or(0, Vec::len);
        (codes as u64, (scales * size_of::<f32>()) as u64)
    }
}

/// The 64 values of a panel's columns from `at` on.
#[inline]
fn columns_at<T>(all: &[T], at: usize) -> &[T; PANEL] {
    let columns = all[at..].first_chunk();
    columns.expect("values for columns are padded to whole panels")
}

/// Bytes of one panel: a step is 64 columns by 4 of K, so panels begin on cache lines.
const fn panel_bytes(depth: usize) -> usize {
    depth.div_ceil(4) * PANEL * 4
}

/// Rotates and quantizes 64 rows of floats (`[64][depth]`) into one panel.
fn pack_panel(kernel: Kernel, rows: &mut [f32], codes: &mut [u8], scales: &mut [f32]) {
    let depth = rows.len() / PANEL;
    for (row, scale) in rows.chunks_exact_mut(depth).zip(&mut *scales) {
        row.chunks_mut(GROUP)
            .for_each(|group| kernel.rotate(Rotation::Full, group));
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
            four.fill(ZERO_POINT as u8);
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
