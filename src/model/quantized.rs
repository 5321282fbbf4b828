//! What stands between two matrix multiplies: float rows in, quantized rows out.

use super::attention::{Step, gather};
use crate::int8::activations::{Activations, groups_of};
use crate::int8::kernels::pool::{PerUnit, Pool};
use crate::int8::kernels::{Kernel, tree_sum};
use crate::int8::rotation::Rotation;
use crate::int8::{GROUP, PANEL};

/// From this many rows on the norms are shared between threads; below, starting a phase costs more than it saves.
const SHARED_NORM_ROWS: usize = 16;

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
    inverse_rms.resize(rows, 0.0);
    let inverse_rms_of = |row: usize| {
        let mut squares = [0.0; 16];
        for panel in 0..panels {
            kernel.add_squares(
                &residual[(panel * rows + row) * PANEL..][..PANEL],
                &mut squares,
            );
        }
        1.0 / (tree_sum(&squares) / config.hidden_size as f32 + config.rms_norm_eps).sqrt()
    };
    let fill = |range: std::ops::Range<usize>, out: &mut [f32]| {
        range
            .zip(out)
            .for_each(|(row, value)| *value = inverse_rms_of(row));
    };
    if rows < SHARED_NORM_ROWS {
        fill(0..rows, inverse_rms);
    } else {
        pool.run(rows, PerUnit::new(inverse_rms, 1), |_, range, out| {
            fill(range, out)
        });
    }
    out.set_rows(rows);
    quantize(kernel, pool, rotation, out, |row, column, values| {
        gather(residual, rows, row, column, values);
        for (value, weight) in values.iter_mut().zip(&weight[column..]) {
            *value = *value * inverse_rms[row] * weight;
        }
    });
}

/// Quantizes the attention output, which is grouped by key head.
pub fn quantize_attended(
    step: &Step<'_>,
    pool: &mut Pool,
    attended: &[f32],
    rotation: Rotation,
    out: &mut Activations,
) {
    let rows = step.places.len();
    let width = step.config.num_heads / step.config.num_kv_heads * step.config.head_dim;
    out.set_rows(rows);
    quantize(step.kernel, pool, rotation, out, |row, column, values| {
        let mut done = 0;
        while done < values.len() {
            let (kv_head, offset) = ((column + done) / width, (column + done) % width);
            let count = (width - offset).min(values.len() - done);
            let source = &attended[(kv_head * rows + row) * width + offset..][..count];
            values[done..done + count].copy_from_slice(source);
            done += count;
        }
    });
}

/// Fills the rows of `out`: `produce(row, column, values)` writes the values from `column` on.
fn quantize(
    kernel: Kernel,
    pool: &mut Pool,
    rotation: Rotation,
    out: &mut Activations,
    produce: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let (rows, groups) = (out.rows(), out.groups());
    let last = out.group_width(groups - 1);
    pool.run(groups, out.by_group(), |_, range, parts| {
        for (group, out) in range.zip(groups_of(rows, parts)) {
            let width = if group + 1 == groups { last } else { GROUP };
            for (row, codes) in out.codes.iter_mut().enumerate() {
                let mut values = [0.0; GROUP];
                produce(row, group * GROUP, &mut values[..width]);
                (out.scales[row], out.sums[row]) =
                    kernel.quantize_group(rotation, &mut values, width, codes);
            }
        }
    });
}
