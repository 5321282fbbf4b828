//! The definition of what every kernel computes, written to be obviously correct.

use super::super::{PANEL, ZERO_POINT};
use super::{Candidate, Kernel, Tile, peak, recurrence, vector};

/// Runs everywhere; the other kernels are tested against it.
pub(super) const CANDIDATE: Candidate = Candidate {
    kernel: Kernel {
        name: "scalar",
        tile,
        vector: vector::PORTABLE,
        recurrence: recurrence::PORTABLE,
        limits: peak::SCALAR,
    },
    features: Vec::new,
};

/// # Safety
/// `tile` was checked by [`Kernel::tile`].
unsafe fn tile(t: &Tile) {
    // SAFETY: `Tile` guarantees these lengths.
    let (weights, scales, sums, out) = unsafe {
        (
            std::slice::from_raw_parts(t.weights, t.steps * PANEL * 4),
            std::slice::from_raw_parts(t.scales, t.rows),
            std::slice::from_raw_parts(t.sums, t.rows),
            std::slice::from_raw_parts_mut(t.out, t.rows * PANEL),
        )
    };
    // SAFETY: `Tile` guarantees 64 values behind each pointer that is not null.
    let (zero_points, column_scales) = unsafe {
        (
            (t.zero_points.cast::<[u8; PANEL]>()).as_ref(),
            (t.column_scales.cast::<[f32; PANEL]>()).as_ref(),
        )
    };
    for row in 0..t.rows {
        // SAFETY: `Tile` guarantees `4 · steps` codes in every row.
        let codes = unsafe { std::slice::from_raw_parts(t.codes.add(row * t.stride), 4 * t.steps) };
        for column in 0..PANEL {
            let products = (0..t.steps).flat_map(|step| (0..4).map(move |i| (step, i)));
            let dot: i32 = products
                .map(|(step, i)| {
                    i32::from(weights[(step * PANEL + column) * 4 + i])
                        * i32::from(codes[step * 4 + i])
                })
                .sum();
            let zero_point = zero_points.map_or(ZERO_POINT, |z| i32::from(z[column]));
            let scale = scales[row] * column_scales.map_or(1.0, |s| s[column]);
            let sum = (dot - zero_point * sums[row]) as f32;
            let slot = &mut out[row * PANEL + column];
            *slot = sum.mul_add(scale, if t.accumulate { *slot } else { 0.0 });
        }
    }
}
