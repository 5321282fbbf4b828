//! One property suite that compares every kernel this CPU can run with the scalar one. Bits are compared, not
//! closeness.

mod recurrence;
mod softmax;

use proptest::prelude::*;

use super::super::{GROUP, PANEL};
use super::{Block, Kernel, Rows, available};
use crate::int8::rotation::Rotation;

const ROTATIONS: [Rotation; 4] = [
    Rotation::None,
    Rotation::Full,
    Rotation::Blocks64,
    Rotation::Strided,
];

/// What this CPU can run, and what a model of the instructions can.
fn kernels() -> Vec<Kernel> {
    #[cfg(target_arch = "x86_64")]
    let model = super::amx_int8::model::kernel();
    #[cfg(not(target_arch = "x86_64"))]
    let model = None;
    available().into_iter().chain(model).collect()
}

fn others() -> impl Iterator<Item = Kernel> {
    kernels()
        .into_iter()
        .filter(|kernel| kernel.name() != "scalar")
}

fn scalar() -> Kernel {
    super::scalar::CANDIDATE.kernel
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Codes over the whole range; the extremes are frequent, because saturation shows there.
fn code() -> impl Strategy<Value = i8> {
    prop_oneof![2 => -127i8..=127, 1 => Just(-127), 1 => Just(127), 1 => Just(0)]
}

fn weight() -> impl Strategy<Value = u8> {
    prop_oneof![2 => any::<u8>(), 1 => Just(0), 1 => Just(1), 1 => Just(255), 1 => Just(128)]
}

fn value() -> impl Strategy<Value = f32> {
    prop_oneof![4 => -10.0f32..10.0, 1 => Just(0.0), 1 => -1e4f32..1e4, 1 => -1e-5f32..1e-5]
}

#[derive(Debug)]
struct Case {
    weights: Vec<u8>,
    zero_points: Option<[u8; PANEL]>,
    column_scales: Option<[f32; PANEL]>,
    codes: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
    out: Vec<f32>,
    stride: usize,
    accumulate: bool,
}

impl Case {
    fn run(&self, kernel: Kernel) -> Vec<f32> {
        let mut out = self.out.clone();
        let rows = Rows {
            codes: &self.codes,
            stride: self.stride,
            scales: &self.scales,
            sums: &self.sums,
        };
        let weights = Block {
            codes: &self.weights,
            zero_points: self.zero_points.as_ref(),
            scales: self.column_scales.as_ref(),
            ahead: &self.weights,
        };
        kernel.tile(weights, rows, &mut out, self.accumulate);
        out
    }
}

fn case() -> impl Strategy<Value = Case> {
    (
        // Some kernels prepare the weights once for many rows.
        prop_oneof![0usize..20, 20usize..70],
        prop_oneof![Just(64usize), 1usize..64],
        0usize..9,
        any::<bool>(),
        prop::option::of(prop::collection::vec(weight(), PANEL)),
        prop::option::of(prop::collection::vec(value(), PANEL)),
    )
        .prop_flat_map(
            |(rows, steps, extra, accumulate, zero_points, column_scales)| {
                let stride = 4 * steps + extra;
                (
                    prop::collection::vec(weight(), steps * PANEL * 4),
                    prop::collection::vec(code(), rows * stride),
                    prop::collection::vec(value(), rows),
                    prop::collection::vec(value(), rows * PANEL),
                )
                    .prop_map(move |(weights, codes, scales, out)| {
                        let zero_points = zero_points
                            .as_ref()
                            .map(|all| std::array::from_fn(|i| all[i]));
                        let column_scales = column_scales
                            .as_ref()
                            .map(|all| std::array::from_fn(|i| all[i]));
                        let row_sum =
                            |row: &[i8]| row[..4 * steps].iter().map(|&c| i32::from(c)).sum();
                        let sums = codes.chunks_exact(stride).map(row_sum).collect();
                        Case {
                            weights,
                            zero_points,
                            column_scales,
                            codes,
                            scales,
                            sums,
                            out,
                            stride,
                            accumulate,
                        }
                    })
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_kernel_computes_the_scalar_tile(case in case()) {
        let expected = bits(&case.run(scalar()));
        for kernel in others() {
            prop_assert_eq!(&bits(&case.run(kernel)), &expected, "{:?}", kernel);
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_rows_beside_it(case in case()) {
        for kernel in kernels() {
            let together = case.run(kernel);
            for row in 0..case.scales.len() {
                let alone = Case {
                    weights: case.weights.clone(),
                    codes: case.codes[row * case.stride..][..case.stride].to_vec(),
                    scales: vec![case.scales[row]],
                    sums: vec![case.sums[row]],
                    out: case.out[row * PANEL..][..PANEL].to_vec(),
                    ..case
                };
                prop_assert_eq!(bits(&alone.run(kernel)), bits(&together[row * PANEL..][..PANEL]), "{:?}", kernel);
            }
        }
    }

    #[test]
    fn every_kernel_quantizes_a_group_like_the_scalar_one(
        values in prop::collection::vec(value(), GROUP), len in prop_oneof![Just(GROUP), 0..=GROUP],
    ) {
        let run = |kernel: Kernel| {
            let mut padded = [0.0; GROUP];
            padded[..len].copy_from_slice(&values[..len]);
            let mut codes = [0; GROUP];
            let (scale, sum) = kernel.quantize_group(Rotation::Full, &mut padded, len, &mut codes);
            (scale.to_bits(), sum, codes)
        };
        let (scale, sum, codes) = run(scalar());
        prop_assert_eq!(sum, codes.iter().map(|&c| i32::from(c)).sum::<i32>());
        prop_assert!(codes.iter().all(|&c| c != i8::MIN));
        prop_assert!(codes[len..].iter().all(|&c| c == 0));
        for kernel in others() {
            prop_assert_eq!(&run(kernel), &(scale, sum, codes), "{:?}", kernel);
        }
    }

    #[test]
    fn every_kernel_computes_the_scalar_vector_functions(
        values in prop::collection::vec(value(), 1..700),
        row in prop::array::uniform32(value()),
        scales in prop::array::uniform32(value()),
        rows in 1usize..5,
    ) {
        let wide = |half: [f32; 32]| -> [f32; PANEL] { std::array::from_fn(|i| half[i % 32] + (i / 32) as f32) };
        let (row, scales) = (wide(row), wide(scales));
        let run = |kernel: Kernel| {
            let mut rotated = values.clone();
            for rotation in ROTATIONS {
                kernel.rotate(rotation, &mut rotated);
            }
            let (head, table) = values.split_at(values.len() / 4 * 2);
            let mut turned = head.to_vec();
            kernel.apply_rotary(&mut turned, &table[..head.len()]);
            let mut squares = vec![[1.0; 16]; values.len() / PANEL];
            kernel.add_squares(&values[..squares.len() * PANEL], &mut squares);
            let mut normalized = values.clone();
            kernel.normalize(&values, row[0], &values, &mut normalized);
            kernel.scale(&mut normalized, row[1]);
            let mut scaled = row.repeat(rows);
            kernel.scale_columns(&mut scaled, &scales);
            let mut added = scaled.clone();
            kernel.add_scaled_columns(&mut added, &row.repeat(rows), &scales);
            kernel.add_products(&mut added, &scaled, &row, &scales[..rows], &scales[rows..2 * rows]);
            let mut activated = [0.0; PANEL / 2];
            kernel.swiglu(&row, &scales, &mut activated);
            [bits(&rotated), bits(&turned), bits(squares.as_flattened()), bits(&normalized), bits(&scaled), bits(&added), bits(&activated)]
        };
        let expected = run(scalar());
        for kernel in others() {
            prop_assert_eq!(&run(kernel), &expected, "{:?}", kernel);
        }
    }

    #[test]
    fn every_kernel_computes_the_scalar_weighted_sums(
        values in prop::collection::vec(value(), PANEL * 48),
        weights in prop::collection::vec(value(), PANEL * 7),
        width in prop_oneof![Just(16usize), Just(32), Just(48), 1usize..48],
        rows in 1usize..=7,
    ) {
        let run = |kernel: Kernel| {
            let mut out: Vec<f32> = (0..rows * width).map(|i| i as f32 / 7.0).collect();
            kernel.add_weighted(&weights[..rows * PANEL], &values[..PANEL * width], &mut out);
            bits(&out)
        };
        let expected = run(scalar());
        for kernel in others() {
            prop_assert_eq!(&run(kernel), &expected, "{:?}", kernel);
        }
    }
}

#[test]
fn a_rotation_keeps_products_and_undoes_itself() {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum() };
    for len in [1, 2, 4, 64, 96, 200, 256, 256 + 64, 576, 1000] {
        let x: Vec<f32> = (0..len)
            .map(|i| ((i * 37 + 11) % 101) as f32 - 50.0)
            .collect();
        let y: Vec<f32> = (0..len)
            .map(|i| ((i * 53 + 29) % 97) as f32 - 48.0)
            .collect();
        for (kernel, rotation) in available()
            .into_iter()
            .flat_map(|kernel| ROTATIONS.map(|rotation| (kernel, rotation)))
        {
            let (mut rx, mut ry) = (x.clone(), y.clone());
            kernel.rotate(rotation, &mut rx);
            kernel.rotate(rotation, &mut ry);
            let (before, after) = (dot(&x, &y), dot(&rx, &ry));
            let close = (before - after).abs() < 1e-5 * dot(&x, &x).max(1.0);
            assert!(
                close,
                "{kernel:?}, {rotation:?}, length {len}: {before} became {after}"
            );
            kernel.rotate(rotation, &mut rx);
            let undone = rx.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-3);
            assert!(
                undone,
                "{kernel:?}, {rotation:?}, length {len} is not undone"
            );
        }
    }
}

#[test]
fn sums_of_the_largest_products_are_exact() {
    const ROWS: usize = 8;
    for (weight, code) in [(255, 127), (255, -127), (0, 127), (0, -127)] {
        let case = Case {
            weights: vec![weight; GROUP * PANEL],
            zero_points: None,
            column_scales: None,
            codes: vec![code; ROWS * GROUP],
            scales: vec![1.0; ROWS],
            sums: vec![GROUP as i32 * i32::from(code); ROWS],
            out: vec![0.0; ROWS * PANEL],
            stride: GROUP,
            accumulate: false,
        };
        let expected = (i32::from(weight) - 128) * i32::from(code) * GROUP as i32;
        for kernel in kernels() {
            let found = case.run(kernel);
            let exact = found.iter().all(|&sum| sum == expected as f32);
            assert!(exact, "{kernel:?}, {weight} times {code}: {found:?}");
        }
    }
}

#[test]
fn a_value_that_is_not_finite_cannot_pass_unseen() {
    for kernel in available() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [1.0; GROUP];
            values[17] = bad;
            let (scale, _) =
                kernel.quantize_group(Rotation::Full, &mut values, GROUP, &mut [0; GROUP]);
            assert!(!scale.is_finite(), "{kernel:?} hides {bad}");
        }
    }
}

#[test]
fn the_survey_names_every_kernel_and_agrees_with_what_is_available() {
    let usable: Vec<_> = super::survey()
        .into_iter()
        .filter(|(_, why)| why.is_none())
        .map(|(name, _)| name)
        .collect();
    let listed: Vec<_> = available().iter().map(Kernel::name).collect();
    println!("this CPU has {}", listed.join(", "));
    assert_eq!(usable, listed);
}

#[test]
fn a_kernel_is_found_by_its_name_unless_the_cpu_cannot_run_it() {
    for (name, reason) in super::survey() {
        match (super::choice::named(name), reason) {
            (Ok(kernel), None) => assert_eq!(kernel.name(), name),
            (Err(said), Some(reason)) => assert_eq!(said, reason),
            (found, reason) => panic!(
                "{name}: {:?}, {reason:?}",
                found.map(|kernel| kernel.name())
            ),
        }
    }
    let unknown = super::choice::named("abacus").map(|kernel| kernel.name());
    assert_eq!(
        unknown,
        Err("abacus is not a kernel of this build".to_owned())
    );
}
