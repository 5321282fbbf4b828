//! Rounding to eight bits and back inside a differentiated graph.
//!
//! The rounding is that of the product: both operations call the serving quantizers, [`Matrix::pack`] for weights and
//! [`Kernel::quantize_group`] for activations, and return the values of their codes. Rounding is flat nearly
//! everywhere, so its true gradient is useless; the straight-through estimator replaces it with the identity. (That is
//! for ranges that contain every value, as absmax does: a clamped value should have no gradient.)
//!
//! Both undo the rotation that they were quantized in: a served layer multiplies `Q(xH)·Q(WH)ᵀ`, and since `HHᵀ = 1`
//! that is `(Q(xH)Hᵀ)·(Q(WH)Hᵀ)ᵀ`, the product of the values returned here.
//!
//! [`Kernel::quantize_group`]: microgranite::int8::kernels::Kernel::quantize_group

use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape, Tensor};
use microgranite::int8::compute::Compute;
use microgranite::int8::kernels;
use microgranite::int8::matrix::Matrix;
use microgranite::int8::rotation::Rotation;
use microgranite::int8::scheme::Scheme;
use microgranite::int8::{GROUP, PANEL};

/// A matrix `[out, in]`, rounded to eight bits.
pub fn weights(scheme: &Scheme, weight: &Tensor) -> Result<Tensor> {
    weight.apply_op1(Rounding::Weights(*scheme))
}

/// Activations `[rows, in]`, rounded to eight bits.
pub fn activations(scheme: &Scheme, x: &Tensor) -> Result<Tensor> {
    x.apply_op1(Rounding::Activations(scheme.rotation))
}

/// The kind of tensor to round.
enum Rounding {
    /// A matrix, packed like that of a checkpoint.
    Weights(Scheme),
    /// Rows of activations, with a scale per row and per 256 values.
    Activations(Rotation),
}

impl CustomOp1 for Rounding {
    fn name(&self) -> &'static str {
        "round-to-int8"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, depth) = layout.shape().dims2()?;
        let all = storage.as_slice::<f32>()?;
        let Some((start, end)) = layout.contiguous_offsets() else {
            return Err(Error::RequiresContiguous { op: self.name() }.bt());
        };
        let values = &all[start..end];
        let rounded = match self {
            Self::Weights(scheme) => round_weights(scheme, values, rows, depth)?,
            Self::Activations(rotation) => round_activations(*rotation, values, depth),
        };
        Ok((CpuStorage::F32(rounded), layout.shape().clone()))
    }

    /// The straight-through estimator.
    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(gradient.clone()))
    }
}

fn round_weights(scheme: &Scheme, values: &[f32], rows: usize, depth: usize) -> Result<Vec<f32>> {
    let matrix = pack(scheme, values, rows, depth)?;
    let mut rounded = vec![0.0; rows * depth];
    for (row, out) in rounded.chunks_exact_mut(depth).enumerate() {
        for (group, out) in out.chunks_mut(GROUP).enumerate() {
            matrix.dequantize_group(kernels::best(), row, group, out);
        }
    }
    Ok(rounded)
}

/// The packed matrix.
fn pack(scheme: &Scheme, values: &[f32], rows: usize, depth: usize) -> Result<Matrix> {
    // The matrices are too small for more threads to pay.
    let mut compute = Compute::new(1).unwrap();
    let fill = |panel: usize, out: &mut [f32]| {
        let rest = &values[panel * PANEL * depth..];
        let len = rest.len().min(out.len());
        out[..len].copy_from_slice(&rest[..len]);
        Ok(())
    };
    Matrix::pack(rows, depth, scheme, &[], &mut compute, fill)
        .map(|(matrix, _)| matrix)
        .map_err(Error::wrap)
}

fn round_activations(rotation: Rotation, values: &[f32], depth: usize) -> Vec<f32> {
    let kernel = kernels::best();
    let mut rounded = values.to_vec();
    for group in rounded
        .chunks_exact_mut(depth)
        .flat_map(|row| row.chunks_mut(GROUP))
    {
        let (mut padded, mut codes) = ([0.0; GROUP], [0; GROUP]);
        padded[..group.len()].copy_from_slice(group);
        let (scale, _) = kernel.quantize_group(rotation, &mut padded, group.len(), &mut codes);
        for (value, code) in group.iter_mut().zip(codes) {
            *value = f32::from(code) * scale;
        }
        kernel.rotate(rotation, group);
    }
    rounded
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use microgranite::int8::activations::{Activations, groups_of};
    use microgranite::int8::kernels::pool::Pool;
    use microgranite::int8::scheme::{Granularity, Mapping, Range};
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64;

    use super::*;

    /// Two panels, the second incomplete; two groups, the second not a multiple of four.
    const COLUMNS: usize = 70;
    const DEPTH: usize = 301;
    const ROWS: usize = 5;

    fn schemes() -> Vec<Scheme> {
        let mut all = Vec::new();
        for mapping in [Mapping::Symmetric, Mapping::Affine] {
            for granularity in [
                Granularity::Tensor,
                Granularity::Channel,
                Granularity::Group,
            ] {
                for rotation in [Rotation::None, Rotation::Full, Rotation::Strided] {
                    all.push(Scheme {
                        mapping,
                        granularity,
                        rotation,
                        range: Range::Absmax,
                    });
                }
            }
        }
        all
    }

    /// Values of very different sizes, some of them zero.
    fn values(count: usize, seed: u64) -> Vec<f32> {
        let mut random = Pcg64::seed_from_u64(seed);
        let value = |index: usize| match index % 11 {
            0 => 0.0,
            1 => random.random_range(-8.0f32..8.0),
            _ => random.random_range(-1.0f32..1.5),
        };
        (0..count).map(value).collect()
    }

    fn flat(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn matrix(values: Vec<f32>, rows: usize) -> Tensor {
        Tensor::from_vec(values, (rows, DEPTH), &Device::Cpu).unwrap()
    }

    #[test]
    fn symmetric_weights_of_a_tensor_are_what_the_map_says_by_hand() {
        let scheme = Scheme {
            granularity: Granularity::Tensor,
            rotation: Rotation::None,
            ..Scheme::default()
        };
        let values = values(COLUMNS * DEPTH, 1);
        let most = values
            .iter()
            .fold(0.0f32, |most, value| most.max(value.abs()));
        // 2·127 steps from −most to most.
        let scale = most / 254.0 + most / 254.0;
        let expected: Vec<f32> = values
            .iter()
            .map(|value| (value * (1.0 / scale)).round_ties_even() * scale)
            .collect();
        assert_eq!(
            flat(&weights(&scheme, &matrix(values, COLUMNS)).unwrap()),
            expected
        );
    }

    #[test]
    fn weights_are_what_the_codes_that_serve_stand_for() {
        for scheme in schemes() {
            let values = values(COLUMNS * DEPTH, 2);
            let packed = pack(&scheme, &values, COLUMNS, DEPTH).unwrap();
            let (scales, groups) = (packed.all_scales(), packed.groups());
            let panel_codes = packed.codes().len() / packed.panels();
            let mut expected = vec![0.0; COLUMNS * DEPTH];
            for (column, row) in expected.chunks_exact_mut(DEPTH).enumerate() {
                let (panel, lane) = (column / PANEL, column % PANEL);
                for (k, value) in row.iter_mut().enumerate() {
                    let place = (panel * groups + k / GROUP) * PANEL + lane;
                    let code =
                        packed.codes()[panel * panel_codes + (k / 4 * PANEL + lane) * 4 + k % 4];
                    let zero_point = scales
                        .zero_points
                        .as_ref()
                        .map_or(128, |points| points[place]);
                    let scale = scales.column[column]
                        * scales.group.as_ref().map_or(1.0, |scales| scales[place]);
                    *value = f32::from(i16::from(code) - i16::from(zero_point)) * scale;
                }
                row.chunks_mut(GROUP)
                    .for_each(|group| kernels::best().rotate(scheme.rotation, group));
            }
            assert_eq!(
                flat(&weights(&scheme, &matrix(values, COLUMNS)).unwrap()),
                expected,
                "{scheme}"
            );
        }
    }

    /// Rows as the served model quantizes them.
    fn quantized(rotation: Rotation, values: &[f32]) -> Activations {
        let mut out = Activations::new(ROWS, DEPTH);
        let widths: Vec<usize> = (0..out.groups())
            .map(|group| out.group_width(group))
            .collect();
        let mut pool = Pool::new(1).unwrap();
        pool.run(widths.len(), out.by_group(), |_, range, parts| {
            for (group, out) in range.zip(groups_of(ROWS, parts)) {
                out.fill(kernels::best(), rotation, widths[group], |row, out| {
                    out.copy_from_slice(&values[row * DEPTH + group * GROUP..][..out.len()]);
                });
            }
        });
        out
    }

    #[test]
    fn activations_are_what_the_codes_that_serve_stand_for() {
        for rotation in [Rotation::None, Rotation::Full, Rotation::Blocks64] {
            let values = values(ROWS * DEPTH, 3);
            let served = quantized(rotation, &values);
            let scheme = Scheme {
                rotation,
                ..Scheme::default()
            };
            let found = flat(&activations(&scheme, &matrix(values, ROWS)).unwrap());
            for (row, found) in found.chunks_exact(DEPTH).enumerate() {
                for (group, found) in found.chunks(GROUP).enumerate() {
                    let served = served.group(group);
                    let codes = served.codes[row * GROUP..][..found.len()].iter();
                    let mut expected: Vec<f32> = codes
                        .map(|code| f32::from(*code) * served.scales[row])
                        .collect();
                    kernels::best().rotate(rotation, &mut expected);
                    assert_eq!(found, expected, "{rotation}, row {row}, group {group}");
                }
            }
        }
    }

    #[test]
    fn a_fake_quantized_layer_gives_what_the_int8_kernels_give() {
        for scheme in schemes() {
            let (weight, x) = (values(COLUMNS * DEPTH, 4), values(ROWS * DEPTH, 5));
            let packed = pack(&scheme, &weight, COLUMNS, DEPTH).unwrap();
            let mut served = vec![0.0; packed.panels() * ROWS * PANEL];
            let input = quantized(scheme.rotation, &x);
            let mut compute = Compute::new(1).unwrap();
            compute.multiply(&packed, &input, &mut served);
            let fake_x = activations(&scheme, &matrix(x, ROWS)).unwrap();
            let fake_weight = weights(&scheme, &matrix(weight, COLUMNS)).unwrap();
            let fake = flat(&fake_x.matmul(&fake_weight.t().unwrap()).unwrap());
            for (row, fake) in fake.chunks_exact(COLUMNS).enumerate() {
                for (column, fake) in fake.iter().enumerate() {
                    let served = served[(column / PANEL * ROWS + row) * PANEL + column % PANEL];
                    // Sums of hundreds of products near 1, in a different order and without rotation.
                    assert!((fake - served).abs() < 2e-3, "{scheme}: {fake} {served}");
                }
            }
        }
    }

    #[test]
    fn gradients_pass_rounding_as_if_it_were_not_there() {
        let scheme = Scheme::default();
        let var = Var::from_tensor(&matrix(values(COLUMNS * DEPTH, 6), COLUMNS)).unwrap();
        let factors = matrix(values(COLUMNS * DEPTH, 7), COLUMNS);
        for round in [weights, activations] {
            let rounded = round(&scheme, var.as_tensor()).unwrap();
            assert_ne!(flat(&rounded), flat(var.as_tensor()));
            let gradients = (rounded * &factors)
                .unwrap()
                .sum_all()
                .unwrap()
                .backward()
                .unwrap();
            assert_eq!(flat(gradients.get(&var).unwrap()), flat(&factors));
        }
    }
}
