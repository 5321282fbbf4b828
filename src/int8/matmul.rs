//! `y = x·Wᵀ`: threads divide the panels of outputs among themselves.
//!
//! Outputs are panel-major, `[panels][rows][64]`, see [`Panels`], so each thread's panels are contiguous.

use std::ops::Range;

use super::activations::{Activations, GroupMut, GroupShares, groups_of};
use super::compute::Compute;
use super::floats::Floats;
use super::kernels::pool::{PerThread, PerUnit, UnitParts};
use super::kernels::{Kernel, Rows};
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

/// The sums of one panel before the column scales: `input` gives the rows of each group, `out` is `[rows][64]`.
pub(super) fn panel_sums<'a>(
    kernel: Kernel,
    matrix: &Matrix,
    panel: usize,
    input: impl Fn(usize) -> Rows<'a>,
    out: &mut [f32],
) {
    for (group, block) in matrix.blocks(panel).enumerate() {
        kernel.tile(block, input(group), out, group > 0);
    }
}

/// Adds one panel of `input · matrixᵀ` to `target`, `[rows][64]`.
pub(super) fn add_panel(
    kernel: Kernel,
    matrix: &Matrix,
    panel: usize,
    input: &Activations,
    target: &mut [f32],
    scratch: &mut Floats,
) {
    let sums = scratch.set_len(target.len());
    panel_sums(kernel, matrix, panel, |group| input.group(group), sums);
    kernel.add_scaled_columns(target, sums, matrix.scales(panel));
}

/// Fills one group of `quantize(silu(gate) · up)` for all rows of `out`, from the panels of an interleaved
/// gate-and-up matrix that make it. `input` gives the rows of each group of the matrix's depth; `width` of the group's
/// values are not padding.
#[expect(clippy::too_many_arguments, reason = "each is a part of one product")]
pub(super) fn swiglu_group<'a>(
    kernel: Kernel,
    matrix: &Matrix,
    panels: Range<usize>,
    input: impl Fn(usize) -> Rows<'a>,
    rotation: Rotation,
    width: usize,
    scratch: &mut Floats,
    out: GroupMut<'_>,
) {
    const HALF: usize = PANEL / 2;
    let rows = out.codes.len();
    let scratch = scratch.set_len(rows * (PANEL + GROUP));
    let (sums, values) = scratch.split_at_mut(rows * PANEL);
    let values: &mut [[f32; GROUP]] = bytemuck::cast_slice_mut(values);
    values
        .iter_mut()
        .for_each(|row| row[panels.len() * HALF..].fill(0.0));
    for (at, panel) in panels.enumerate() {
        panel_sums(kernel, matrix, panel, &input, sums);
        let scales = matrix.scales(panel);
        for (sums, values) in sums.chunks_exact(PANEL).zip(&mut *values) {
            let target = &mut values[at * HALF..][..HALF];
            let sums = sums.try_into().expect("a panel row");
            kernel.swiglu(sums, scales, target.try_into().expect("half a panel row"));
        }
    }
    for (row, values) in values.iter_mut().enumerate() {
        (out.scales[row], out.sums[row]) =
            kernel.quantize_group(rotation, values, width, &mut out.codes[row]);
    }
}

/// Panels of an interleaved gate-and-up matrix that make one group of the feed-forward activation.
pub(super) const PANELS_PER_SWIGLU_GROUP: usize = GROUP / (PANEL / 2);

impl Compute {
    /// `out = input · matrixᵀ`; `out` is `[panels][rows][64]`.
    pub fn multiply(&mut self, matrix: &Matrix, input: &Activations, out: &mut [f32]) {
        self.multiply_then(matrix, input, out, (), |_, _, ()| ());
    }

    /// [`Compute::multiply`], and then `then(panel, its part of out, the thread's share of parts)` for each panel on the
    /// thread that has computed it. The units of `parts` are the panels.
    pub fn multiply_then<P: UnitParts>(
        &mut self,
        matrix: &Matrix,
        input: &Activations,
        out: &mut [f32],
        parts: P,
        then: impl Fn(usize, &mut [f32], &mut P::Share) + Sync,
    ) {
        check(matrix, input);
        let Self { kernel, pool, .. } = self;
        let panel_len = input.rows() * PANEL;
        let parts = (PerUnit::new(out, panel_len), parts);
        pool.balance(matrix.panels(), parts, (), |range, (out, mut share), ()| {
            for (panel, out) in range.zip(out.chunks_exact_mut(panel_len)) {
                panel_sums(*kernel, matrix, panel, |group| input.group(group), out);
                kernel.scale_columns(out, matrix.scales(panel));
                then(panel, out, &mut share);
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
        let parts = PerUnit::new(target, panel_len);
        let scratch = PerThread::new(scratch);
        pool.balance(matrix.panels(), parts, scratch, |range, target, scratch| {
            for (panel, target) in range.zip(target.chunks_exact_mut(panel_len)) {
                add_panel(*kernel, matrix, panel, input, target, scratch);
            }
        });
    }

    /// `out = quantize(silu(gate) · up)`.
    ///
    /// Whole groups of the result are computed by one thread, so that it can rotate and quantize them.
    pub fn multiply_swiglu(&mut self, product: GateUp<'_>, out: &mut Activations) {
        let (units, width) = (product.set_rows(out), out.width());
        let (kernel, scratch) = (self.kernel, PerThread::new(&mut self.scratch));
        let fill = |range: Range<usize>, parts: GroupShares<'_>, scratch: &mut &mut Floats| {
            product.fill(kernel, width, range, parts, scratch);
        };
        self.pool.balance(units, out.by_group(), scratch, fill);
    }
}

/// The product of rows with a gate-and-up matrix that all of them take.
#[derive(Clone, Copy)]
pub struct GateUp<'a> {
    /// Each panel holds 32 gate columns and the corresponding 32 up columns.
    pub matrix: &'a Matrix,
    /// The rows.
    pub input: &'a Activations,
    /// The rotation of the result.
    pub rotation: Rotation,
}

impl GateUp<'_> {
    /// Prepares `out` for the product's rows; returns its number of groups.
    pub(super) fn set_rows(&self, out: &mut Activations) -> usize {
        let Self { matrix, input, .. } = *self;
        check(matrix, input);
        out.set_rows(input.rows());
        assert!(
            out.groups() == matrix.panels().div_ceil(PANELS_PER_SWIGLU_GROUP),
            "{matrix:?} and its product differ in width"
        );
        out.groups()
    }

    /// Fills groups `range` of `quantize(silu(gate) · up)`, which has `width` values.
    pub(super) fn fill(
        &self,
        kernel: Kernel,
        width: usize,
        range: Range<usize>,
        parts: GroupShares<'_>,
        scratch: &mut Floats,
    ) {
        let Self {
            matrix,
            input,
            rotation,
        } = *self;
        for (group, out) in range.zip(groups_of(input.rows(), parts)) {
            let first = group * PANELS_PER_SWIGLU_GROUP;
            let panels = first..matrix.panels().min(first + PANELS_PER_SWIGLU_GROUP);
            let width = GROUP.min(width - group * GROUP);
            let input = |group| input.group(group);
            swiglu_group(kernel, matrix, panels, input, rotation, width, scratch, out);
        }
    }
}

pub(super) fn check(matrix: &Matrix, input: &Activations) {
    assert_eq!(
        matrix.groups(),
        input.groups(),
        "{matrix:?} and its input differ in depth"
    );
}
