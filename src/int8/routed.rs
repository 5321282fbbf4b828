//! Products with the matrices of experts: each row is multiplied with the experts that it has taken, and each expert's
//! weights are read once for all of its rows.
//!
//! A matrix holds all experts, one after the other. Rows are sorted by expert; nothing is computed for an expert
//! without rows. The order in which a row's results are added depends on the row alone, so the rows beside it change no
//! bit.

use std::ops::Range;

use super::activations::{Activations, GroupMut, GroupShares};
use super::compute::Compute;
use super::floats::bytes;
use super::kernels::Rows;
use super::kernels::pool::{PerThread, PerUnit, Ragged};
use super::matmul::{GateUp, PANELS_PER_SWIGLU_GROUP, add_panel, check, panel_sums, swiglu_group};
use super::matrix::Matrix;
use super::rotation::Rotation;
use super::{GROUP, PANEL};

/// From this many rows on, the threads divide their copying. A row of 1.5 KiB takes a few hundredths of a microsecond.
const SHARED_COPIES: usize = 64;

/// Which rows have taken which experts.
#[derive(Debug, Default)]
pub struct Routes {
    /// The experts that some row has taken, ascending.
    experts: Vec<usize>,
    /// Where the rows of each of `experts` begin, and where the last one's end.
    starts: Vec<usize>,
    /// The rows of each of `experts`, ascending.
    rows: Vec<u32>,
    /// The weight of the expert's result in each of `rows`.
    weights: Vec<f32>,
}

impl Routes {
    /// Bytes of the buffers.
    pub const fn bytes(&self) -> usize {
        bytes(&self.experts) + bytes(&self.starts) + bytes(&self.rows) + bytes(&self.weights)
    }

    /// Sorts the choices of all rows by expert. `taken` and `weights` are `[rows][per_row]`; a row takes an expert at
    /// most once, and experts are below `count`.
    pub fn sort(&mut self, count: usize, per_row: usize, taken: &[u32], weights: &[f32]) {
        assert_eq!(taken.len(), weights.len());
        let mut ends = vec![0; count + 1];
        taken.iter().for_each(|expert| ends[*expert as usize] += 1);
        self.experts.clear();
        self.starts.clear();
        let mut start = 0;
        for (expert, end) in ends.iter_mut().enumerate() {
            let rows = std::mem::replace(end, start);
            if rows > 0 {
                self.experts.push(expert);
                self.starts.push(start);
            }
            start += rows;
        }
        self.starts.push(start);
        self.rows.resize(taken.len(), 0);
        self.weights.resize(taken.len(), 0.0);
        // Rows are visited in ascending order, so they ascend for each expert.
        for (index, (expert, weight)) in taken.iter().zip(weights).enumerate() {
            let at = &mut ends[*expert as usize];
            self.rows[*at] = (index / per_row) as u32;
            self.weights[*at] = *weight;
            *at += 1;
        }
    }

    /// How many experts some row has taken.
    pub const fn experts(&self) -> usize {
        self.experts.len()
    }

    /// How many rows expert number `index` of the taken ones has.
    fn rows_of(&self, index: usize) -> usize {
        self.starts[index + 1] - self.starts[index]
    }
}

/// Quantized rows, sorted by expert: `[expert][group][rows of the expert][256]`.
#[derive(Debug)]
pub struct RoutedRows {
    width: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
    /// Where the rows of each group of each expert begin, in rows of a group.
    bounds: Vec<usize>,
}

impl RoutedRows {
    /// Bytes of the buffers.
    pub const fn bytes(&self) -> usize {
        bytes(&self.codes) + bytes(&self.scales) + bytes(&self.sums) + bytes(&self.bounds)
    }

    /// Rows of `width` values.
    pub const fn new(width: usize) -> Self {
        Self {
            width,
            codes: Vec::new(),
            scales: Vec::new(),
            sums: Vec::new(),
            bounds: Vec::new(),
        }
    }

    const fn groups(&self) -> usize {
        self.width.div_ceil(GROUP)
    }

    fn set_routes(&mut self, routes: &Routes) {
        let groups = self.groups();
        self.bounds.clear();
        for index in 0..routes.experts.len() {
            let (first, rows) = (routes.starts[index] * groups, routes.rows_of(index));
            self.bounds
                .extend((0..groups).map(|group| first + group * rows));
        }
        let total = routes.rows.len() * groups;
        self.bounds.push(total);
        if self.scales.len() < total {
            self.codes.resize(total * GROUP, 0);
            self.scales.resize(total, 0.0);
            self.sums.resize(total, 0);
        }
    }

    /// Group `group` of all rows of expert number `index` of the taken ones.
    fn group(&self, index: usize, group: usize) -> Rows<'_> {
        let unit = index * self.groups() + group;
        let range = self.bounds[unit]..self.bounds[unit + 1];
        Rows {
            codes: &self.codes[range.start * GROUP..range.end * GROUP],
            stride: GROUP,
            scales: &self.scales[range.clone()],
            sums: &self.sums[range],
        }
    }

    /// The arrays as parts with one unit for each group of each expert.
    fn by_group(&mut self) -> (Ragged<'_, i8>, Ragged<'_, f32>, Ragged<'_, i32>) {
        (
            Ragged::new(&mut self.codes, GROUP, &self.bounds),
            Ragged::new(&mut self.scales, 1, &self.bounds),
            Ragged::new(&mut self.sums, 1, &self.bounds),
        )
    }
}

/// The shares of [`RoutedRows::by_group`] as groups; `rows` gives the number of rows of each.
fn groups_of<'a>(
    (mut codes, mut scales, mut sums): GroupShares<'a>,
    rows: impl Iterator<Item = usize>,
) -> impl Iterator<Item = GroupMut<'a>> {
    rows.map(move |rows| GroupMut {
        codes: bytemuck::cast_slice_mut(split_off(&mut codes, rows * GROUP)),
        scales: split_off(&mut scales, rows),
        sums: split_off(&mut sums, rows),
    })
}

fn split_off<'a, T>(slice: &mut &'a mut [T], count: usize) -> &'a mut [T] {
    let (first, rest) = std::mem::take(slice).split_at_mut(count);
    *slice = rest;
    first
}

impl Compute {
    /// Copies each row of `input` to the experts that it has taken.
    pub fn gather(&mut self, routes: &Routes, input: &Activations, out: &mut RoutedRows) {
        assert_eq!(input.groups(), out.groups(), "the same width");
        out.set_routes(routes);
        let groups = out.groups();
        let units = routes.experts.len() * groups;
        let parts = out.by_group();
        let copy = |_: usize, range: Range<usize>, parts: GroupShares<'_>| {
            let rows = range.clone().map(|unit| routes.rows_of(unit / groups));
            for (unit, out) in range.zip(groups_of(parts, rows)) {
                let source = input.group(unit % groups);
                let (codes, _) = source.codes.as_chunks::<GROUP>();
                let rows = &routes.rows[routes.starts[unit / groups]..][..out.codes.len()];
                for (index, row) in rows.iter().enumerate() {
                    let row = *row as usize;
                    out.codes[index] = codes[row];
                    out.scales[index] = source.scales[row];
                    out.sums[index] = source.sums[row];
                }
            }
        };
        if routes.rows.len() < SHARED_COPIES {
            self.pool.run_alone(units, parts, copy);
        } else {
            self.pool.run(units, parts, copy);
        }
    }

    /// `out = quantize(silu(gate) · up)` of each row with each expert that it has taken; as
    /// [`Compute::multiply_swiglu`], with a matrix that has equally many panels for every one of `count` experts. What all
    /// rows take, `shared`, is computed in the same phase.
    #[expect(clippy::too_many_arguments, reason = "each is a part of one product")]
    pub fn multiply_swiglu_routed(
        &mut self,
        matrix: &Matrix,
        count: usize,
        routes: &Routes,
        input: &RoutedRows,
        rotation: Rotation,
        out: &mut RoutedRows,
        shared: Option<(GateUp<'_>, &mut Activations)>,
    ) {
        assert_eq!(matrix.groups(), input.groups(), "{matrix:?} and its input");
        out.set_routes(routes);
        let (groups, panels) = (out.groups(), matrix.panels() / count);
        assert_eq!(
            groups,
            panels.div_ceil(PANELS_PER_SWIGLU_GROUP),
            "{matrix:?}"
        );
        let last = out.width - (groups - 1) * GROUP;
        let mut nothing = Activations::new(0, 0);
        let (of_all, shared_out) = match shared {
            Some((product, out)) => (Some(product), out),
            None => (None, &mut nothing),
        };
        let shared_groups = of_all.map_or(0, |product| product.set_rows(shared_out));
        let shared_width = shared_out.width();
        let (kernel, units) = (self.kernel, routes.experts.len() * groups);
        self.pool.balance_both(
            PerThread::new(&mut self.scratch),
            (
                shared_groups,
                shared_out.by_group(),
                |range, parts, scratch| {
                    if let Some(product) = of_all {
                        product.fill(kernel, shared_width, range, parts, scratch);
                    }
                },
            ),
            (units, out.by_group(), |range, parts, scratch| {
                let rows = range.clone().map(|unit| routes.rows_of(unit / groups));
                for (unit, out) in range.zip(groups_of(parts, rows)) {
                    let (index, group) = (unit / groups, unit % groups);
                    let first = group * PANELS_PER_SWIGLU_GROUP;
                    let width = if group + 1 == groups { last } else { GROUP };
                    let of_expert = routes.experts[index] * panels;
                    let panels =
                        of_expert + first..of_expert + panels.min(first + PANELS_PER_SWIGLU_GROUP);
                    let input = |group| input.group(index, group);
                    swiglu_group(kernel, matrix, panels, input, rotation, width, scratch, out);
                }
            }),
        );
    }

    /// `target[row] += weight · (input · matrixᵀ)` for each row and each expert that it has taken, experts in ascending
    /// order. `target` is `[panels][rows][64]`; the matrix has equally many panels for every one of `count` experts. The
    /// product of all rows with `shared` is added first.
    #[expect(clippy::too_many_arguments, reason = "each is a part of one product")]
    pub fn multiply_add_routed(
        &mut self,
        matrix: &Matrix,
        count: usize,
        routes: &Routes,
        input: &RoutedRows,
        target: &mut [f32],
        rows: usize,
        shared: Option<(&Matrix, &Activations)>,
    ) {
        assert_eq!(matrix.groups(), input.groups(), "{matrix:?} and its input");
        let (panels, panel_len) = (matrix.panels() / count, rows * PANEL);
        if let Some((matrix, input)) = shared {
            check(matrix, input);
            assert!(
                matrix.panels() == panels && input.rows() == rows,
                "{matrix:?}"
            );
        }
        let kernel = self.kernel;
        let (parts, scratch) = (
            PerUnit::new(target, panel_len),
            PerThread::new(&mut self.scratch),
        );
        (self.pool).balance(panels, parts, scratch, |range, target, scratch| {
            if let Some((matrix, input)) = shared {
                for (panel, target) in range.clone().zip(target.chunks_exact_mut(panel_len)) {
                    add_panel(kernel, matrix, panel, input, target, scratch);
                }
            }
            // Panels are innermost, because those of an expert follow each other in memory.
            for (index, expert) in routes.experts.iter().enumerate() {
                let own = routes.starts[index]..routes.starts[index + 1];
                let (taking, weights) = (&routes.rows[own.clone()], &routes.weights[own]);
                let sums = scratch.set_len(taking.len() * PANEL);
                for (panel, target) in range.clone().zip(target.chunks_exact_mut(panel_len)) {
                    let (target, _) = target.as_chunks_mut::<PANEL>();
                    let panel = expert * panels + panel;
                    let input = |group| input.group(index, group);
                    panel_sums(kernel, matrix, panel, input, sums);
                    let scales = matrix.scales(panel);
                    let rows = taking.iter().zip(weights);
                    for (sums, (row, weight)) in sums.chunks_exact_mut(PANEL).zip(rows) {
                        kernel.scale(sums, *weight);
                        kernel.add_scaled_columns(&mut target[*row as usize], sums, scales);
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_sorted_by_expert_and_then_by_row() {
        let mut routes = Routes::default();
        let taken = [4, 1, 1, 0, 4, 0];
        let weights = [0.9, 0.1, 0.8, 0.2, 0.7, 0.3];
        routes.sort(6, 2, &taken, &weights);
        assert_eq!(routes.experts, [0, 1, 4]);
        assert_eq!(routes.starts, [0, 2, 4, 6]);
        assert_eq!(routes.rows, [1, 2, 0, 1, 0, 2]);
        assert_eq!(routes.weights, [0.2, 0.3, 0.1, 0.8, 0.9, 0.7]);
    }
}
