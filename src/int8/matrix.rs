//! Packed weights.

use rand::{Rng, SeedableRng};

use super::compensate::Factor;
use super::compute::Compute;
use super::kernels::pool::{PerThread, PerUnit, Pool};
use super::kernels::{Block, Kernel};
use super::memory::Memory;
use super::quantize::{self, Loss, PanelMut};
use super::rotation::Rotation;
use super::scheme::{Granularity, Mapping, Scheme};
use super::{BLOCK_BYTES, GROUP, PANEL, ZERO_POINT};
use crate::error::Result;

/// An int8 matrix of `columns` outputs and `depth` inputs in the layout that the kernels read.
///
/// The matrix is divided into panels of 64 output columns. Each panel is one sequential stream of
/// `[k/4][64 columns][4 of k]` bytes; a group is 64 K-steps of it, and the last group has the remaining ones. Padding
/// columns have scale 0, and padding beyond the depth is multiplied with activations that are 0. The packed rows are
/// rotated (see [`super`]).
pub struct Matrix {
    columns: usize,
    depth: usize,
    rotation: Rotation,
    codes: Memory,
    scales: Scales,
}

/// The scales and zero points that turn the codes of a matrix into weights:
/// `w = column[n] · group[n][g] · (q − zero_points[n][g])`.
#[derive(Debug, Clone, PartialEq)]
pub struct Scales {
    /// One per column, padded with zeros to whole panels.
    pub column: Vec<f32>,
    /// `[panels][groups][64]`, if groups have scales of their own.
    pub group: Option<Vec<f32>>,
    /// `[panels][groups][64]`, if they are not all 128.
    pub zero_points: Option<Vec<u8>>,
}

/// Rows of int8 codes, to be filled: `weight = scale · (code − zero point)`, with one scale and zero point per row.
///
/// Files hold signed codes; here 128 is added to codes and zero points.
pub struct CodeRows<'a> {
    /// `[rows][k]`.
    pub codes: &'a mut [u8],
    /// One per row: not negative, and so small that 255 times the scale is finite.
    pub scales: &'a mut [f32],
    /// One per row; 128 if the quantization is symmetric.
    pub zero_points: &'a mut [u8],
}

/// Bytes of a matrix in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixBytes {
    /// Bytes of codes and zero points.
    pub codes: u64,
    /// Bytes of scales.
    pub scales: u64,
}

impl Matrix {
    /// Packs a matrix whose rows (one per output column) are produced panel by panel: `fill(panel, out)` writes the
    /// rows `64 · panel ..` of the float matrix to `out` (`[64][depth]`, zeroed before) and may run on any thread of
    /// the pool. `factors`, if not empty, has one factor per group, which compensates rounding errors. Also returns the
    /// rounding loss, measured in the rotated weights. The result does not depend on the number of threads.
    ///
    /// # Errors
    /// The first error of `fill`, in no particular order.
    pub fn pack(
        columns: usize,
        depth: usize,
        scheme: &Scheme,
        factors: &[Factor],
        compute: &mut Compute,
        fill: impl Fn(usize, &mut [f32]) -> Result<()> + Sync,
    ) -> Result<(Self, Loss)> {
        let Compute { kernel, pool, .. } = compute;
        let panels = columns.div_ceil(PANEL);
        let rotated = |panel: usize, rows: &mut Vec<f32>| {
            rows.clear();
            rows.resize(PANEL * depth, 0.0);
            fill(panel, rows)?;
            quantize::rotate(*kernel, scheme, rows, depth);
            Ok(())
        };
        let whole = match scheme.granularity {
            Granularity::Tensor => {
                let mut reaches = vec![(0.0f32, 0.0f32); panels];
                each_panel(pool, &mut reaches, |panel, rows, reach| {
                    rotated(panel, rows)?;
                    *reach = quantize::reach(scheme, rows, depth);
                    Ok(())
                })?;
                let widest = |a: (f32, f32), b: &(f32, f32)| (a.0.min(b.0), a.1.max(b.1));
                let reach = reaches.iter().fold((0.0, 0.0), widest);
                Some(quantize::map(scheme.mapping, reach))
            }
            Granularity::Channel | Granularity::Group => None,
        };
        let (panel_bytes, grouped) = (panel_bytes(depth), depth.div_ceil(GROUP) * PANEL);
        let has_groups = scheme.granularity == Granularity::Group;
        let has_zero_points = scheme.mapping == Mapping::Affine;
        let mut codes = Memory::zeroed(panels * panel_bytes)?;
        let mut column = vec![0.0; panels * PANEL];
        let mut group = has_groups.then(|| vec![0.0; panels * grouped]);
        let mut zero_points = has_zero_points.then(|| vec![0; panels * grouped]);
        let mut losses = vec![Loss::default(); panels];
        let mut outputs: Vec<(PanelMut<'_>, &mut Loss)> = {
            let mut group = parts(group.as_deref_mut(), grouped);
            let mut zero_points = parts(zero_points.as_deref_mut(), grouped);
            codes
                .bytes_mut()
                .chunks_exact_mut(panel_bytes)
                .zip(column.chunks_exact_mut(PANEL))
                .zip(&mut losses)
                .map(|((codes, column_scales), loss)| {
                    let out = PanelMut {
                        codes,
                        column_scales,
                        group_scales: group.next().unwrap_or_default(),
                        zero_points: zero_points.next().unwrap_or_default(),
                    };
                    (out, loss)
                })
                .collect()
        };
        each_panel(pool, &mut outputs, |panel, rows, (out, loss)| {
            rotated(panel, rows)?;
            **loss = quantize::quantize_panel(scheme, factors, whole, rows, out);
            Ok(())
        })?;
        drop(outputs);
        let scales = Scales {
            column,
            group,
            zero_points,
        };
        let matrix = Self::from_parts(columns, depth, scheme.rotation, codes, scales);
        let loss = losses.into_iter().fold(Loss::default(), Loss::and);
        Ok((matrix, loss))
    }

    /// Packs the codes of a checkpoint that is int8 already, without rotation: `fill(panel, out)` writes the rows
    /// `64 · panel ..` to `out` (`[64][depth]` codes; rows that it does not write are zero) and may run on any thread
    /// of the pool. Unless `zero_points` is set, all zero points that it writes must be 128.
    ///
    /// # Errors
    /// The first error of `fill`, in no particular order.
    pub(crate) fn from_codes(
        columns: usize,
        depth: usize,
        zero_points: bool,
        pool: &mut Pool,
        fill: impl Fn(usize, CodeRows<'_>) -> Result<()> + Sync,
    ) -> Result<Self> {
        let (panels, panel_bytes) = (columns.div_ceil(PANEL), panel_bytes(depth));
        let groups = depth.div_ceil(GROUP);
        let mut codes = Memory::zeroed(panels * panel_bytes)?;
        let mut scales = vec![0.0; panels * PANEL];
        let mut points = vec![ZERO_POINT as u8; panels * groups * PANEL];
        let mut threads: Vec<(Vec<u8>, Result<()>)> = (0..pool.threads())
            .map(|_| (vec![0; PANEL * depth], Ok(())))
            .collect();
        let parts = (
            PerUnit::new(codes.bytes_mut(), panel_bytes),
            PerUnit::new(&mut scales, PANEL),
            PerUnit::new(&mut points, groups * PANEL),
            PerThread::new(&mut threads),
        );
        pool.run(
            panels,
            parts,
            |_, range, (codes, scales, points, (rows, outcome))| {
                let targets = codes
                    .chunks_exact_mut(panel_bytes)
                    .zip(scales.chunks_exact_mut(PANEL))
                    .zip(points.chunks_exact_mut(groups * PANEL));
                *outcome = range
                    .zip(targets)
                    .try_for_each(|(panel, ((codes, scales), points))| {
                        rows.fill(ZERO_POINT as u8);
                        let (of_rows, of_groups) = points.split_at_mut(PANEL);
                        let out = CodeRows {
                            codes: rows.as_mut_slice(),
                            scales,
                            zero_points: &mut *of_rows,
                        };
                        fill(panel, out)?;
                        // A row has one zero point; each of its groups gets a copy.
                        for group in of_groups.chunks_exact_mut(PANEL) {
                            group.copy_from_slice(of_rows);
                        }
                        interleave(rows, depth, codes);
                        Ok(())
                    });
            },
        );
        threads.into_iter().try_for_each(|(_, outcome)| outcome)?;
        let scales = Scales {
            column: scales,
            group: None,
            zero_points: zero_points.then_some(points),
        };
        Ok(Self::from_parts(
            columns,
            depth,
            Rotation::None,
            codes,
            scales,
        ))
    }

    /// Assembles a matrix from codes and scales that are already packed.
    ///
    /// # Panics
    /// If the length of a part does not match `columns` and `depth`: callers check files first.
    pub(crate) fn from_parts(
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

    /// A matrix of random codes for measuring speed. It does not depend on the number of threads.
    ///
    /// # Errors
    /// [`crate::error::Error::Config`] if there is not enough memory.
    pub fn random(columns: usize, depth: usize, pool: &mut Pool) -> Result<Self> {
        let panels = columns.div_ceil(PANEL);
        let panel_bytes = panel_bytes(depth);
        let mut codes = Memory::zeroed(panels * panel_bytes)?;
        pool.run(
            panels,
            PerUnit::new(codes.bytes_mut(), panel_bytes),
            |_, range, codes| {
                for (panel, codes) in range.zip(codes.chunks_exact_mut(panel_bytes)) {
                    rand_pcg::Pcg64::seed_from_u64(panel as u64).fill_bytes(codes);
                }
            },
        );
        // With this scale, products with vectors of unit variance have a standard deviation of about one, so nothing
        // overflows.
        let scale = 1.0 / (74.0 * (depth as f32).sqrt());
        let scales = Scales {
            column: vec![scale; panels * PANEL],
            group: None,
            zero_points: None,
        };
        let matrix = Self::from_parts(columns, depth, Rotation::Full, codes, scales);
        Ok(matrix)
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

    /// The rotation that activations need before they are multiplied with this matrix.
    pub const fn rotation(&self) -> Rotation {
        self.rotation
    }

    /// The groups of one panel in order, each of 64 K-steps except the last.
    #[inline]
    pub fn blocks(&self, panel: usize) -> impl Iterator<Item = Block<'_>> {
        let len = panel_bytes(self.depth);
        // The bytes behind a block are read next and are worth a prefetch: they are the next group or, after the last
        // group, the next panel.
        let (start, all) = (panel * len, self.codes.bytes());
        let codes = all[start..][..len]
            .chunks(BLOCK_BYTES)
            .scan(start, |end, codes| {
                *end += codes.len();
                Some((codes, &all[*end..all.len().min(*end + BLOCK_BYTES)]))
            });
        let first = panel * self.groups();
        let Scales {
            group: scales,
            zero_points,
            ..
        } = &self.scales;
        codes.zip(first..).map(|((codes, ahead), block)| Block {
            codes,
            ahead,
            zero_points: (zero_points.as_deref()).map(|all| columns_at(all, block * PANEL)),
            scales: (scales.as_deref()).map(|all| columns_at(all, block * PANEL)),
        })
    }

    /// All codes, `[panels][k/4][64][4]`.
    pub fn codes(&self) -> &[u8] {
        self.codes.bytes()
    }

    /// The memory of the codes.
    pub const fn memory(&self) -> &Memory {
        &self.codes
    }

    /// All scales and zero points.
    pub const fn all_scales(&self) -> &Scales {
        &self.scales
    }

    /// The scales of a panel's columns.
    #[inline]
    pub fn scales(&self, panel: usize) -> &[f32; PANEL] {
        columns_at(&self.scales.column, panel * PANEL)
    }

    /// Multiplies every scale by `factor`: folds a constant of the model into the weights, so that it costs nothing at
    /// run time.
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

    /// The size in memory, including padding.
    pub fn bytes(&self) -> MatrixBytes {
        let Scales {
            column,
            group,
            zero_points,
        } = &self.scales;
        let codes = self.codes.bytes().len() + zero_points.as_ref().map_or(0, Vec::len);
        let scales = column.len() + group.as_ref().map_or(0, Vec::len);
        MatrixBytes {
            codes: codes as u64,
            scales: (scales * size_of::<f32>()) as u64,
        }
    }
}

impl MatrixBytes {
    /// The sum of both.
    pub const fn total(self) -> u64 {
        self.codes + self.scales
    }
}

/// The 64 values of a panel's columns from `at` on.
#[inline]
fn columns_at<T>(all: &[T], at: usize) -> &[T; PANEL] {
    let columns = all[at..].first_chunk();
    columns.expect("values for columns are padded to whole panels")
}

/// Bytes of one panel: a K-step is 64 columns by 4 of K, so panels begin on cache lines.
pub(crate) const fn panel_bytes(depth: usize) -> usize {
    depth.div_ceil(4) * PANEL * 4
}

/// Runs `body(panel, rows, its part of out)` for every panel, with a buffer for each thread.
fn each_panel<T: Send>(
    pool: &mut Pool,
    out: &mut [T],
    body: impl Fn(usize, &mut Vec<f32>, &mut T) -> Result<()> + Sync,
) -> Result<()> {
    let mut threads: Vec<(Vec<f32>, Result<()>)> =
        (0..pool.threads()).map(|_| (Vec::new(), Ok(()))).collect();
    let panels = out.len();
    let parts = (PerUnit::new(out, 1), PerThread::new(&mut threads));
    pool.run(panels, parts, |_, range, (out, (rows, outcome))| {
        *outcome = (range.zip(out)).try_for_each(|(panel, out)| body(panel, rows, out));
    });
    threads.into_iter().try_for_each(|(_, outcome)| outcome)
}

/// Splits the values, if there are any, into parts of `len`.
fn parts<T>(all: Option<&mut [T]>, len: usize) -> impl Iterator<Item = &mut [T]> {
    all.into_iter()
        .flat_map(move |all| all.chunks_exact_mut(len))
}

/// Copies 64 rows of codes (`[64][depth]`) into the order of a panel, `[depth / 4][64][4]`.
fn interleave(rows: &[u8], depth: usize, panel: &mut [u8]) {
    for (step, line) in panel.chunks_exact_mut(PANEL * 4).enumerate() {
        let width = (depth - step * 4).min(4);
        for (column, four) in line.chunks_exact_mut(4).enumerate() {
            four.fill(ZERO_POINT as u8);
            four[..width].copy_from_slice(&rows[column * depth + step * 4..][..width]);
        }
    }
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix {} × {}", self.columns, self.depth)
    }
}
