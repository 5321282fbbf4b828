//! `y = x·Wᵀ`: threads divide the panels of outputs among themselves.
//!
//! Outputs are panel-major, `[panels][rows][64]`, see [`Panels`], so each thread's panels are contiguous.

use super::activations::{Activations, groups_of};
use super::compute::Compute;
use super::kernels::Kernel;
use super::kernels::pool::{PerThread, PerUnit};
use super::matrix::Matrix;
use super::rotation::Rotation;
use super::{GROUP, PANEL};

/// Float rows in the layout of a product, `[panels][rows][64]`.
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    values: &'a [f32],
    rows: usize,
}

impl<'a> Panels<'a> {
    /// `rows` rows in `values`.
    pub const fn new(values: &'a [f32], rows: usize) -> Self {
        Self { values, rows }
    }

    /// How many rows there are.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// The 64 values of row `row` in panel `panel`.
    #[inline]
    pub fn row(&self, panel: usize, row: usize) -> &'a [f32] {
        self.stretch(panel, row, 1)
    }

    /// The values of `count` neighbouring rows in panel `panel`, from row `first` on.
    #[inline]
    pub fn stretch(&self, panel: usize, first: usize, count: usize) -> &'a [f32] {
        &self.values[(panel * self.rows + first) * PANEL..][..count * PANEL]
    }

    /// Fills `out` with the columns from `column` on of row `row`.
    pub fn gather(&self, row: usize, column: usize, out: &mut [f32]) {
        let mut done = 0;
        while done < out.len() {
            let (panel, lane) = ((column + done) / PANEL, (column + done) % PANEL);
            let count = (PANEL - lane).min(out.len() - done);
            out[done..done + count].copy_from_slice(&self.row(panel, row)[lane..][..count]);
            done += count;
        }
    }
}

/// The sums of one panel before the column scales: `out` is `[rows][64]`.
fn panel_sums(kernel: Kernel, matrix: &Matrix, panel: usize, input: &Activations, out: &mut [f32]) {
    for (group, block) in matrix.blocks(panel).enumerate() {
        kernel.tile(block, input.group(group), out, group > 0);
    }
}

/// Panels of an interleaved gate-and-up matrix that make one group of the feed-forward activation.
const PANELS_PER_SWIGLU_GROUP: usize = GROUP / (PANEL / 2);

impl Compute {
    /// `out = input · matrixᵀ`; `out` is `[panels][rows][64]`.
    pub fn multiply(&mut self, matrix: &Matrix, input: &Activations, out: &mut [f32]) {
        check(matrix, input);
        let Self { kernel, pool, .. } = self;
        let panel_len = input.rows() * PANEL;
        let parts = PerUnit::new(out, panel_len);
        pool.run(matrix.panels(), parts, |_, range, out| {
            for (panel, out) in range.zip(out.chunks_exact_mut(panel_len)) {
                panel_sums(*kernel, matrix, panel, input, out);
                kernel.scale_columns(out, matrix.scales(panel));
            }
        });
    }

    /// `target += input · matrixᵀ`: the residual addition; `target` is `[panels][rows][64]`.
    pub fn multiply_add(&mut self, matrix: &Matrix, input: &Activations, target: &mut [f32]) {
        check(matrix, input);
        let Self {
            kernel,
            pool,
            scratch,
        } = self;
        let panel_len = input.rows() * PANEL;
        let parts = (PerUnit::new(target, panel_len), PerThread::new(scratch));
        pool.run(matrix.panels(), parts, |_, range, (target, scratch)| {
            let sums = scratch.set_len(panel_len);
            for (panel, target) in range.zip(target.chunks_exact_mut(panel_len)) {
                panel_sums(*kernel, matrix, panel, input, sums);
                kernel.add_scaled_columns(target, sums, matrix.scales(panel));
            }
        });
    }

    /// `out = quantize(silu(gate) · up)`; each panel of `matrix` holds 32 gate columns and the corresponding 32 up
    /// columns.
    ///
    /// Each thread computes whole groups of the result, so that it can rotate them by `rotation` and quantize them.
    pub fn multiply_swiglu(
        &mut self,
        matrix: &Matrix,
        input: &Activations,
        rotation: Rotation,
        out: &mut Activations,
    ) {
        check(matrix, input);
        let Self {
            kernel,
            pool,
            scratch,
        } = self;
        let rows = input.rows();
        out.set_rows(rows);
        let groups = out.groups();
        assert!(
            groups == matrix.panels().div_ceil(PANELS_PER_SWIGLU_GROUP),
            "{matrix:?} and its product differ in width"
        );
        let widths: [usize; 2] = [GROUP, out.group_width(groups - 1)];
        let (codes, scales, sums) = out.by_group();
        let parts = (codes, scales, sums, PerThread::new(scratch));
        pool.run(groups, parts, |_, range, (codes, scales, sums, scratch)| {
            let (panel_sums_buffer, values) =
                (scratch.set_len(rows * (PANEL + GROUP))).split_at_mut(rows * PANEL);
            let values: &mut [[f32; GROUP]] = bytemuck::cast_slice_mut(values);
            for (group, out) in range.zip(groups_of(rows, (codes, scales, sums))) {
                let first = group * PANELS_PER_SWIGLU_GROUP;
                let panels = PANELS_PER_SWIGLU_GROUP.min(matrix.panels() - first);
                values
                    .iter_mut()
                    .for_each(|row| row[panels * (PANEL / 2)..].fill(0.0));
                for panel in 0..panels {
                    panel_sums(*kernel, matrix, first + panel, input, panel_sums_buffer);
                    let scales = matrix.scales(first + panel);
                    for (sums, values) in panel_sums_buffer.chunks_exact(PANEL).zip(&mut *values) {
                        let target = &mut values[panel * (PANEL / 2)..][..PANEL / 2];
                        let sums = sums.try_into().expect("a panel row");
                        kernel.swiglu(sums, scales, target.try_into().expect("half a panel row"));
                    }
                }
                let width = widths[usize::from(group == groups - 1)];
                for (row, values) in values.iter_mut().enumerate() {
                    (out.scales[row], out.sums[row]) =
                        kernel.quantize_group(rotation, values, width, &mut out.codes[row]);
                }
            }
        });
    }
}

fn check(matrix: &Matrix, input: &Activations) {
    assert_eq!(
        matrix.groups(),
        input.groups(),
        "{matrix:?} and its input differ in depth"
    );
}
