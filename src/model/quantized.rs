//! What stands between two matrix multiplies: float rows in, quantized rows out.

use std::ops::Range;

use bytemuck::Zeroable;

use super::attention::Step;
use crate::int8::activations::{Activations, GroupMut, groups_of};
use crate::int8::floats::GroupLines;
use crate::int8::kernels::pool::{PerUnit, Pool};
use crate::int8::kernels::{Kernel, tree_sum};
use crate::int8::rotation::Rotation;
use crate::int8::{GROUP, PANEL};

/// Panels of residual that make a group.
pub const PANELS_PER_GROUP: usize = GROUP / PANEL;

/// From this many rows on the threads share the sums of squares, in a phase of their own; with fewer each thread makes all
/// of them, which takes less than starting a phase: a row takes a tenth of a microsecond.
const SHARED_NORM_ROWS: usize = 32;

/// `quantize(x / rms(x) · weight)`, group by group, rotated by `rotation`.
#[expect(
    clippy::too_many_arguments,
    reason = "what goes in and out of one phase"
)]
pub fn quantize_normed(
    step: &Step<'_>,
    pool: &mut Pool,
    rows: usize,
    residual: &[f32],
    weight: &[f32],
    rotation: Rotation,
    inverse_rms: &mut Vec<f32>,
    out: &mut Activations,
) {
    let (kernel, config) = (step.kernel, step.config);
    let panels = config.hidden_size.div_ceil(PANEL);
    let panel_row = |panel: usize, row: usize| &residual[(panel * rows + row) * PANEL..][..PANEL];
    let fill = |range: Range<usize>, out: &mut [f32]| {
        let mut squares = [[0.0; 16]; SHARED_NORM_ROWS];
        let mut done = range.start;
        for out in out.chunks_mut(SHARED_NORM_ROWS) {
            let squares = &mut squares[..out.len()];
            squares.fill([0.0; 16]);
            for panel in 0..panels {
                let rows = &residual[(panel * rows + done) * PANEL..][..out.len() * PANEL];
                kernel.add_squares(rows, squares);
            }
            for (out, squares) in out.iter_mut().zip(squares) {
                let mean = tree_sum(squares) / config.hidden_size as f32;
                *out = 1.0 / (mean + config.rms_norm_eps).sqrt();
            }
            done += out.len();
        }
    };
    let is_shared = rows >= SHARED_NORM_ROWS;
    if is_shared {
        inverse_rms.resize(rows, 0.0);
        pool.run(rows, PerUnit::new(inverse_rms, 1), |_, range, out| {
            fill(range, out)
        });
    }
    out.set_rows(rows);
    let groups = out.groups();
    let last = out.group_width(groups - 1);
    pool.run(groups, out.by_group(), |_, range, parts| {
        let mut own = [0.0; SHARED_NORM_ROWS];
        let inverse_rms = if is_shared {
            inverse_rms.as_slice()
        } else {
            fill(0..rows, &mut own[..rows]);
            &own[..rows]
        };
        for (group, out) in range.zip(groups_of(rows, parts)) {
            let width = if group + 1 == groups { last } else { GROUP };
            quantize(kernel, rotation, width, out, |row, values| {
                for (i, values) in values.chunks_mut(PANEL).enumerate() {
                    let source = &panel_row(group * PANELS_PER_GROUP + i, row)[..values.len()];
                    let weight = &weight[group * GROUP + i * PANEL..][..values.len()];
                    kernel.normalize(source, inverse_rms[row], weight, values);
                }
            });
        }
    });
}

/// Quantizes the attention output, `[kv_head][rows][width]`, where groups and heads do not coincide.
pub fn quantize_attended(
    step: &Step<'_>,
    pool: &mut Pool,
    attended: &[f32],
    rotation: Rotation,
    out: &mut Activations,
) {
    let (rows, kernel, width) = (step.places.len(), step.kernel, step.width());
    let groups = out.groups();
    let last = out.group_width(groups - 1);
    pool.run(groups, out.by_group(), |_, range, parts| {
        for (group, out) in range.zip(groups_of(rows, parts)) {
            let whole = if group + 1 == groups { last } else { GROUP };
            quantize(kernel, rotation, whole, out, |row, values| {
                let mut done = 0;
                while done < values.len() {
                    let column = group * GROUP + done;
                    let (kv_head, offset) = (column / width, column % width);
                    let count = (width - offset).min(values.len() - done);
                    let source = &attended[(kv_head * rows + row) * width + offset..][..count];
                    values[done..done + count].copy_from_slice(source);
                    done += count;
                }
            });
        }
    });
}

/// Fills a group of all rows: `produce(row, values)` writes the `width` values of a row.
pub fn quantize(
    kernel: Kernel,
    rotation: Rotation,
    width: usize,
    out: GroupMut<'_>,
    produce: impl Fn(usize, &mut [f32]),
) {
    let mut lines = GroupLines::zeroed();
    let values: &mut [f32; GROUP] = bytemuck::cast_mut(&mut lines);
    for (row, codes) in out.codes.iter_mut().enumerate() {
        produce(row, &mut values[..width]);
        values[width..].fill(0.0);
        (out.scales[row], out.sums[row]) = kernel.quantize_group(rotation, values, width, codes);
    }
}
