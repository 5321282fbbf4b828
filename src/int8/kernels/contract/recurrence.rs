//! The vector functions of a Mamba-2 mixer: every kernel against the scalar one, the scalar one against f64.

use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;

use super::super::super::PANEL;
use super::super::{Kernel, Scan, available};
use super::{bits, others, scalar, value};

/// A head with its rows; also the operands of the other functions.
#[derive(Debug, Clone)]
struct Head {
    state: Vec<f32>,
    width: usize,
    x: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    panel_stride: usize,
    steps: Vec<f32>,
    decays: Vec<f32>,
    skip: f32,
}

impl Head {
    /// A head whose values are computed from `seed`: up to 2 in size, with steps and decays as in a model.
    fn of(rows: usize, width: usize, panels: usize, seed: usize) -> Self {
        let panel_stride = rows * PANEL + 16 * (seed % 3);
        let mut bits = seed as u32 ^ 0x9e37_79b9;
        let mut values = |len: usize| -> Vec<f32> {
            let mut next = || {
                bits ^= bits << 13;
                bits ^= bits >> 17;
                bits ^= bits << 5;
                (bits >> 8) as f32 / (1 << 22) as f32 - 2.0
            };
            (0..len).map(|_| next()).collect()
        };
        let positive = |values: Vec<f32>, scale: f32| -> Vec<f32> {
            values.iter().map(|v| (v + 2.0) * 0.25 * scale).collect()
        };
        Self {
            state: values(panels * PANEL * width),
            width,
            x: values(rows * PANEL),
            b: values(panels * panel_stride),
            c: values(panels * panel_stride),
            panel_stride,
            steps: positive(values(rows), 0.5),
            decays: positive(values(rows), 1.0),
            skip: values(1)[0],
        }
    }

    /// Runs rows `from .. to`.
    fn run(&mut self, kernel: Kernel, from: usize, to: usize) {
        kernel.scan(Scan {
            state: &mut self.state,
            width: self.width,
            x: &mut self.x[from * PANEL..to * PANEL],
            b: &self.b[from * PANEL..],
            c: &self.c[from * PANEL..],
            panel_stride: self.panel_stride,
            steps: &self.steps[from..to],
            decays: &self.decays[from..to],
            skip: self.skip,
        });
    }

    /// What is left of the rows after [`Kernel::scan`] with the given kernel.
    fn scanned(&self, kernel: Kernel) -> [Vec<f32>; 2] {
        let mut head = self.clone();
        head.run(kernel, 0, self.steps.len());
        [head.x, head.state]
    }

    /// The outputs and the state, computed in f64, and for each the sum of the magnitudes that were added.
    fn exact(&self) -> [Vec<(f64, f64)>; 2] {
        let mut x: Vec<_> = self.x.iter().map(|&x| (f64::from(x), 0.0)).collect();
        let mut state: Vec<_> = (self.state.iter())
            .map(|&s| (f64::from(s), f64::from(s).abs()))
            .collect();
        for (t, (&step, &decay)) in self.steps.iter().zip(&self.decays).enumerate() {
            for p in 0..self.width {
                let input = f64::from(self.x[t * PANEL + p]);
                let (mut y, mut size) = (f64::from(self.skip) * input, 0.0);
                size += y.abs();
                for n in 0..state.len() / self.width {
                    let at = n / PANEL * self.panel_stride + t * PANEL + n % PANEL;
                    let (b, c) = (f64::from(self.b[at]), f64::from(self.c[at]));
                    let added = f64::from(step) * input * b;
                    let (value, magnitude) = &mut state[n * self.width + p];
                    *value = *value * f64::from(decay) + added;
                    *magnitude = *magnitude * f64::from(decay) + added.abs();
                    y += *value * c;
                    size += *magnitude * c.abs();
                }
                x[t * PANEL + p] = (y, size);
            }
        }
        [x, state]
    }
}

/// Rows that a model computes at once: one, a few, and so many that blocks of rows are crossed.
fn rows() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1usize), 1usize..10, 1usize..150]
}

fn head() -> impl Strategy<Value = Head> {
    (
        rows(),
        prop_oneof![Just(16usize), Just(32), Just(64)],
        1usize..4,
        any::<u16>(),
        value(),
    )
        .prop_map(|(rows, width, panels, seed, scale)| {
            let mut head = Head::of(rows, width, panels, seed.into());
            // Large, tiny and zero values at some places.
            head.x.iter_mut().step_by(7).for_each(|x| *x *= scale);
            head.b.iter_mut().step_by(5).for_each(|b| *b *= scale);
            head
        })
}

/// `window`, rows, taps and bias of a convolution.
fn convolution() -> impl Strategy<Value = [Vec<f32>; 4]> {
    let of = |rows: usize| prop::collection::vec(value(), rows * PANEL);
    (of(3), rows().prop_flat_map(of), of(4), of(1))
        .prop_map(|(window, rows, taps, bias)| [window, rows, taps, bias])
}

/// The rows and the window after a convolution of the rows, cut before row `cut`.
fn convolved(kernel: Kernel, operands: &[Vec<f32>; 4], cut: usize) -> [Vec<f32>; 2] {
    let [mut window, mut rows, taps, bias] = operands.clone();
    let bias = bias[..].try_into().unwrap();
    let (first, second) = rows.split_at_mut(cut * PANEL);
    kernel.conv_silu(&mut window, first, &taps, bias);
    kernel.conv_silu(&mut window, second, &taps, bias);
    [rows, window]
}

fn discretized(kernel: Kernel, raw: &[f32], bias: f32, rate: f32) -> [Vec<f32>; 2] {
    let (mut steps, mut decays) = (raw.to_vec(), vec![f32::NAN; raw.len()]);
    kernel.discretize(&mut steps, &mut decays, bias, rate);
    [steps, decays]
}

fn gated(kernel: Kernel, values: &[f32], gates: &[f32]) -> Vec<f32> {
    let mut values = values.to_vec();
    kernel.gate(&mut values, gates);
    values
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_kernel_scans_like_the_scalar_one(head in head()) {
        let expected = head.scanned(scalar()).map(|values| bits(&values));
        for kernel in others() {
            prop_assert_eq!(&head.scanned(kernel).map(|values| bits(&values)), &expected, "{:?}", kernel);
        }
    }

    #[test]
    fn a_scan_does_not_depend_on_where_rows_are_cut(head in head(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let rows = head.steps.len();
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(rows)).chain([0, rows]).collect();
        cuts.sort_unstable();
        for kernel in available() {
            let mut pieces = head.clone();
            for piece in cuts.windows(2) {
                pieces.run(kernel, piece[0], piece[1]);
            }
            let found = [pieces.x, pieces.state].map(|values| bits(&values));
            prop_assert_eq!(found, head.scanned(kernel).map(|values| bits(&values)), "{:?}", kernel);
        }
    }

    #[test]
    fn a_head_of_half_a_panel_leaves_the_other_half(head in head()) {
        for kernel in available() {
            let [x, _] = head.scanned(kernel);
            for (row, before) in x.chunks_exact(PANEL).zip(head.x.chunks_exact(PANEL)) {
                prop_assert_eq!(&row[head.width..], &before[head.width..], "{:?}", kernel);
            }
        }
    }

    #[test]
    fn a_scan_is_close_to_f64(head in head()) {
        let found = head.scanned(scalar());
        for (found, exact) in found.iter().zip(head.exact()) {
            for (row, exact) in found.chunks_exact(head.width).zip(exact.chunks_exact(head.width)) {
                for (found, (exact, size)) in row.iter().zip(exact) {
                    // Each rounding costs half a unit of a partial sum; there are at most a few hundred in a chain.
                    let error = (f64::from(*found) - exact).abs();
                    prop_assert!(error <= size * 2e-5, "{found} for {exact}, of magnitudes {size}");
                }
            }
        }
    }

    #[test]
    fn every_kernel_convolves_like_the_scalar_one_wherever_rows_are_cut(
        operands in convolution(), cut in any::<prop::sample::Index>(),
    ) {
        let expected = convolved(scalar(), &operands, 0).map(|values| bits(&values));
        let cut = cut.index(operands[1].len() / PANEL + 1);
        for kernel in available() {
            let found = convolved(kernel, &operands, cut).map(|values| bits(&values));
            prop_assert_eq!(&found, &expected, "{:?}", kernel);
        }
    }

    #[test]
    fn a_convolution_is_close_to_f64(operands in convolution()) {
        let [window, rows, taps, bias] = &operands;
        let inputs = [&window[..], rows].concat();
        let [found, last] = convolved(scalar(), &operands, 0);
        prop_assert_eq!(&last, &inputs[rows.len()..]);
        for (i, found) in found.iter().enumerate() {
            let column = i % PANEL;
            let terms = (0..4).map(|j| f64::from(taps[j * PANEL + column]) * f64::from(inputs[i + j * PANEL]));
            let start = f64::from(bias[column]);
            let sum = terms.clone().fold(start, |sum, term| sum + term);
            let size = terms.fold(start.abs(), |size, term| size + term.abs());
            let exact = sum / (1.0 + (-sum).exp());
            // The slope of silu is at most 1.1.
            let bound = 4.0 * f64::from(f32::EPSILON) * (1.1 * size + exact.abs());
            prop_assert!((f64::from(*found) - exact).abs() <= bound, "{found} for {exact}");
        }
    }

    #[test]
    fn every_kernel_discretizes_and_gates_like_the_scalar_one(
        values in prop::collection::vec(value(), 1..200), bias in value(), rate in -20.0f32..0.0,
    ) {
        let gates: Vec<_> = values.iter().rev().map(|v| v * 3.0).collect();
        let run = |kernel| {
            let [steps, decays] = discretized(kernel, &values, bias, rate);
            [bits(&steps), bits(&decays), bits(&gated(kernel, &values, &gates))]
        };
        let expected = run(scalar());
        for kernel in others() {
            prop_assert_eq!(&run(kernel), &expected, "{:?}", kernel);
        }
    }
}

#[test]
fn steps_decays_and_gates_are_within_a_few_units_in_the_last_place() {
    let epsilon = f64::from(f32::EPSILON);
    let relative = |found: f32, exact: f64| (f64::from(found) / exact - 1.0).abs();
    let raw: Vec<f32> = (-8690..=3000).map(|i| i as f32 / 100.0 + 0.003).collect();
    let rate = -0.71;
    for kernel in available() {
        let [steps, decays] = discretized(kernel, &raw, 0.0, rate);
        for ((&raw, step), decay) in raw.iter().zip(steps).zip(decays) {
            let x = f64::from(raw);
            let exact = x.max(0.0) + (-x.abs()).exp().ln_1p();
            let error = relative(step, exact);
            assert!(
                error < 3.0 * epsilon,
                "{kernel:?}: softplus({raw}) = {step}, relative error {error}"
            );
            // The product with the rate is rounded before the exponential, which magnifies that by its size.
            let exponent = f64::from(rate) * f64::from(step);
            let error = relative(decay, exponent.exp());
            assert!(
                error < (2.0 + exponent.abs()) * epsilon,
                "{kernel:?}: exp({exponent}) = {decay}, relative error {error}"
            );
        }
        let gates: Vec<f32> = raw.iter().copied().filter(|&gate| gate > -80.0).collect();
        for (&gate, found) in gates
            .iter()
            .zip(gated(kernel, &vec![1.5; gates.len()], &gates))
        {
            let x = f64::from(gate);
            let error = relative(found, 1.5 * x / (1.0 + (-x).exp()));
            assert!(
                error < 4.0 * epsilon,
                "{kernel:?}: silu({gate}) gives {found}, relative error {error}"
            );
        }
    }
}

#[test]
fn a_step_vanishes_only_where_the_exponential_does() {
    for kernel in available() {
        let [steps, decays] = discretized(kernel, &[-17.0, -50.0, -86.9, -87.1, -1e30], 0.0, -1.0);
        assert!(steps[..3].iter().all(|&step| step > 0.0), "{steps:?}");
        assert_eq!(steps[3..], [0.0; 2]);
        assert_eq!(decays[1..], [1.0; 4]);
        let [steps, decays] = discretized(kernel, &[30.0, 1e30], 0.0, -1.0);
        assert_eq!(steps, [30.0, 1e30]);
        assert_eq!(decays[1], 0.0);
    }
}

#[test]
fn nan_in_a_scan_cannot_pass_unseen() {
    type Place = fn(&mut Head) -> &mut f32;
    let (bad_row, last) = (70, 99);
    // What becomes NaN, and whether it can be seen in the row itself, in later rows and in the state.
    let places: [(&str, Place, [bool; 3]); 6] = [
        ("x", |head| &mut head.x[70 * PANEL + 3], [true, true, true]),
        ("b", |head| &mut head.b[70 * PANEL + 9], [true, true, true]),
        (
            "c",
            |head| &mut head.c[70 * PANEL + 9],
            [true, false, false],
        ),
        ("step", |head| &mut head.steps[70], [true, true, true]),
        ("decay", |head| &mut head.decays[70], [true, true, true]),
        ("state", |head| &mut head.state[3], [true, true, true]),
    ];
    for kernel in available() {
        for width in [16, 32, 64] {
            for (name, place, expected) in places {
                let mut head = Head::of(last + 1, width, 2, 5);
                *place(&mut head) = f32::NAN;
                let [x, state] = head.scanned(kernel);
                let seen = [
                    &x[bad_row * PANEL..][..width],
                    &x[last * PANEL..][..width],
                    &state,
                ]
                .map(|values| values.iter().any(|value| value.is_nan()));
                assert_eq!(seen, expected, "{kernel:?} of width {width}: NaN in {name}");
            }
            let mut head = Head::of(3, width, 1, 5);
            head.skip = f32::NAN;
            let [x, _] = head.scanned(kernel);
            assert!((0..3).all(|t| x[t * PANEL].is_nan()), "{kernel:?}");
        }
    }
}

#[test]
fn nan_in_steps_convolutions_and_gates_cannot_pass_unseen() {
    for kernel in available() {
        let all = |values: &[f32]| values.iter().all(|value| value.is_nan());
        for raw in [[1.0, f32::NAN], [f32::NAN, -100.0]] {
            let found = discretized(kernel, &raw, 0.5, -1.0);
            for (i, raw) in raw.iter().enumerate() {
                assert_eq!(
                    [found[0][i].is_nan(), found[1][i].is_nan()],
                    [raw.is_nan(); 2]
                );
            }
        }
        assert!(all(&discretized(kernel, &[1.0], f32::NAN, -1.0).concat()));
        assert!(all(&discretized(kernel, &[1.0, -100.0], 0.0, f32::NAN)[1]));
        assert!(all(&gated(kernel, &[f32::NAN, 1.0], &[-100.0, f32::NAN])));
        for operand in 0..4 {
            let mut operands = [3, 5, 4, 1].map(|rows| vec![0.5; rows * PANEL]);
            operands[operand][7] = f32::NAN;
            let [rows, _] = convolved(kernel, &operands, 0);
            let seen: Vec<_> = rows
                .chunks_exact(PANEL)
                .map(|row| row[7].is_nan())
                .collect();
            let expected = match operand {
                0 => [true, false, false, false, false],
                1 => [true, true, true, true, false],
                _ => [true; 5],
            };
            assert_eq!(seen, expected, "{kernel:?}, operand {operand}");
        }
        let mut operands = [3, 2, 4, 1].map(|rows| vec![0.5; rows * PANEL]);
        operands[1][PANEL + 7] = f32::NAN;
        assert!(convolved(kernel, &operands, 0)[1][2 * PANEL + 7].is_nan());
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    type Change = fn(&mut Head);
    let changes: [(&str, Change); 9] = [
        ("nothing", |_| ()),
        ("width", |head| head.width = 48),
        ("state", |head| head.state.truncate(PANEL * 32 + 32)),
        ("x", |head| head.x.truncate(2 * PANEL + 31)),
        ("b", |head| head.b.truncate(5 * PANEL + 63)),
        ("c", |head| head.c.truncate(5 * PANEL + 63)),
        ("stride", |head| head.panel_stride = usize::MAX - 100),
        ("steps", |head| head.steps.truncate(2)),
        ("decays", |head| head.decays.truncate(2)),
    ];
    for kernel in available() {
        for (name, change) in changes {
            let mut head = Head::of(3, 32, 2, 0);
            change(&mut head);
            let scan = || {
                kernel.scan(Scan {
                    state: &mut head.state,
                    width: head.width,
                    x: &mut head.x,
                    b: &head.b,
                    c: &head.c,
                    panel_stride: head.panel_stride,
                    steps: &head.steps,
                    decays: &head.decays,
                    skip: head.skip,
                });
            };
            let refused = catch_unwind(AssertUnwindSafe(scan)).is_err();
            assert_eq!(refused, name != "nothing", "{kernel:?}: {name}");
        }
        for lens in [[2, 2, 4], [3, 2, 3], [4, 2, 4], [3, 2, 5]] {
            let [mut window, mut rows, taps] = lens.map(|rows| vec![0.5; rows * PANEL]);
            let convolve = || kernel.conv_silu(&mut window, &mut rows, &taps, &[0.0; PANEL]);
            assert!(
                catch_unwind(AssertUnwindSafe(convolve)).is_err(),
                "{lens:?}"
            );
        }
        let uneven = || kernel.conv_silu(&mut [0.0; 192], &mut [0.0; 100], &[0.0; 256], &[0.0; 64]);
        assert!(catch_unwind(uneven).is_err());
        assert!(catch_unwind(|| kernel.gate(&mut [0.0; 3], &[0.0; 2])).is_err());
        assert!(
            catch_unwind(|| kernel.discretize(&mut [0.0; 3], &mut [0.0; 2], 0.0, -1.0)).is_err()
        );
    }
}

#[test]
fn a_scan_of_no_rows_changes_nothing() {
    for kernel in available() {
        let mut head = Head::of(2, 64, 2, 1);
        let before = head.clone();
        head.run(kernel, 1, 1);
        assert_eq!((head.x, head.state), (before.x, before.state));
    }
}
