//! Root mean square norms: they turn float rows into quantized rows for the next product.

use crate::int8::activations::{Activations, groups_of};
use crate::int8::compute::Compute;
use crate::int8::floats::bytes;
use crate::int8::kernels::pool::PerUnit;
use crate::int8::kernels::{Kernel, tree_sum};
use crate::int8::matmul::Panels;
use crate::int8::rotation::Rotation;
use crate::int8::{GROUP, PANEL};

/// Panels of the residual stream in a group.
pub const PANELS_PER_GROUP: usize = GROUP / PANEL;

/// From this many rows on, the threads divide the sums of squares in a separate phase. With fewer rows each thread
/// computes all sums, which takes less time than starting a phase: a row takes a tenth of a microsecond.
const SHARED_NORM_ROWS: usize = 32;

/// The output of a norm; its memory is reused by the next norm.
pub struct Normed {
    inverse_rms: Vec<f32>,
    /// The normed rows.
    pub rows: Activations,
}

/// `1 / √(mean square + epsilon)` of the `width` values of each row of `x` from row `first` on, one for each of `out`.
pub fn inverse_rms(
    kernel: Kernel,
    x: Panels<'_>,
    width: usize,
    epsilon: f32,
    first: usize,
    out: &mut [f32],
) {
    let mut squares = [[0.0; 16]; SHARED_NORM_ROWS];
    let mut done = first;
    for out in out.chunks_mut(SHARED_NORM_ROWS) {
        let squares = &mut squares[..out.len()];
        squares.fill([0.0; 16]);
        for panel in 0..width.div_ceil(PANEL) {
            kernel.add_squares(x.stretch(panel, done, out.len()), squares);
        }
        for (out, squares) in out.iter_mut().zip(squares) {
            let mean = tree_sum(squares) / width as f32;
            *out = 1.0 / (mean + epsilon).sqrt();
        }
        done += out.len();
    }
}

impl Normed {
    /// Bytes of the buffers.
    pub const fn bytes(&self) -> usize {
        bytes(&self.inverse_rms) + self.rows.bytes()
    }

    /// Creates buffers for rows of `width` values.
    pub fn new(width: usize) -> Self {
        Self {
            inverse_rms: Vec::new(),
            rows: Activations::new(0, width),
        }
    }

    /// `quantize(x / rms(x) · weight)`, group by group, rotated by `rotation`; `epsilon` is added to the mean square.
    pub fn fill(
        &mut self,
        compute: &mut Compute,
        x: Panels<'_>,
        weight: &[f32],
        epsilon: f32,
        rotation: Rotation,
    ) {
        let (kernel, rows, width) = (compute.kernel, x.rows(), weight.len());
        let Self {
            inverse_rms: factors,
            rows: out,
        } = self;
        let fill = |first, out: &mut [f32]| inverse_rms(kernel, x, width, epsilon, first, out);
        let is_shared = rows >= SHARED_NORM_ROWS;
        if is_shared {
            factors.resize(rows, 0.0);
            let parts = PerUnit::new(factors, 1);
            compute
                .pool
                .run(rows, parts, |_, range, out| fill(range.start, out));
        }
        out.set_rows(rows);
        let groups = out.groups();
        let last = out.group_width(groups - 1);
        compute.pool.run(groups, out.by_group(), |_, range, parts| {
            let mut own = [0.0; SHARED_NORM_ROWS];
            let factors = if is_shared {
                factors.as_slice()
            } else {
                fill(0, &mut own[..rows]);
                &own[..rows]
            };
            for (group, out) in range.zip(groups_of(rows, parts)) {
                let width = if group + 1 == groups { last } else { GROUP };
                out.fill(kernel, rotation, width, |row, values| {
                    for (i, values) in values.chunks_mut(PANEL).enumerate() {
                        let source = &x.row(group * PANELS_PER_GROUP + i, row)[..values.len()];
                        let weight = &weight[group * GROUP + i * PANEL..][..values.len()];
                        kernel.normalize(source, factors[row], weight, values);
                    }
                });
            }
        });
    }
}
