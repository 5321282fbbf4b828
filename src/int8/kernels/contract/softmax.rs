//! The softmax of a tile: bits against the scalar form, and values against an ordinary softmax.

use proptest::prelude::*;

use super::{bits, others, scalar, value};
use crate::int8::PANEL;
use crate::int8::kernels::{Kernel, SoftmaxTile, WEIGHT_MIDDLE, available};

/// Queries over one tile, and what they have accumulated before it.
#[derive(Clone, Debug)]
struct Case {
    scores: Vec<f32>,
    valid: usize,
    value_scales: [f32; PANEL],
    maxima: Vec<f32>,
    totals: Vec<f32>,
}

/// What the tile makes of them.
#[derive(Debug, PartialEq)]
struct Outcome {
    maxima: Vec<f32>,
    totals: Vec<f32>,
    rescales: Vec<f32>,
    codes: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

impl Case {
    fn run(&self, kernel: Kernel) -> Outcome {
        let count = self.maxima.len();
        let mut out = Outcome {
            maxima: self.maxima.clone(),
            totals: self.totals.clone(),
            rescales: vec![9.0; count],
            codes: vec![9; count * PANEL],
            scales: vec![9.0; count],
            sums: vec![9; count],
        };
        kernel.softmax_tile(&mut SoftmaxTile {
            scores: &mut self.scores.clone(),
            valid: self.valid,
            value_scales: &self.value_scales,
            maxima: &mut out.maxima,
            totals: &mut out.totals,
            rescales: &mut out.rescales,
            codes: &mut out.codes,
            scales: &mut out.scales,
            sums: &mut out.sums,
        });
        out
    }

    fn query(&self, query: usize) -> Self {
        Self {
            scores: self.scores[query * PANEL..][..PANEL].to_vec(),
            maxima: vec![self.maxima[query]],
            totals: vec![self.totals[query]],
            ..self.clone()
        }
    }
}

impl Outcome {
    fn floats(&self) -> [Vec<u32>; 4] {
        [&self.maxima, &self.totals, &self.rescales, &self.scales].map(|all| bits(all))
    }

    fn query(&self, query: usize) -> Self {
        Self {
            maxima: vec![self.maxima[query]],
            totals: vec![self.totals[query]],
            rescales: vec![self.rescales[query]],
            codes: self.codes[query * PANEL..][..PANEL].to_vec(),
            scales: vec![self.scales[query]],
            sums: vec![self.sums[query]],
        }
    }
}

/// Scores that are close to each other, far apart, all the same or minus zero, and scales of values that are all zero.
fn case() -> impl Strategy<Value = Case> {
    let score = prop_oneof![8 => -12.0f32..12.0, 2 => value(), 1 => Just(-0.0f32), 1 => Just(0.0)];
    let before = prop_oneof![1 => Just(f32::NEG_INFINITY), 2 => -5.0f32..15.0];
    (1usize..10, 1..=PANEL).prop_flat_map(move |(queries, valid)| {
        (
            prop::collection::vec(score.clone(), queries * PANEL),
            prop::collection::vec(before.clone(), queries),
            prop_oneof![
                9 => prop::collection::vec(1e-4f32..1e-1, PANEL),
                1 => Just(vec![0.0; PANEL])
            ],
            // What is stored for tokens that are not there.
            prop_oneof![
                Just(0.0f32),
                Just(f32::NAN),
                Just(f32::INFINITY),
                Just(1e30)
            ],
        )
            .prop_map(move |(scores, maxima, scales, stale)| Case {
                scores,
                valid,
                value_scales: std::array::from_fn(|i| if i < valid { scales[i] } else { stale }),
                totals: maxima
                    .iter()
                    .map(|m| if m.is_finite() { 2.5 } else { 0.0 })
                    .collect(),
                maxima,
            })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_kernel_computes_the_scalar_softmax(case in case()) {
        let expected = case.run(scalar());
        for kernel in others() {
            let found = case.run(kernel);
            prop_assert_eq!(found.floats(), expected.floats(), "{:?}", kernel);
            prop_assert_eq!((&found.codes, &found.sums), (&expected.codes, &expected.sums), "{:?}", kernel);
        }
    }

    #[test]
    fn a_query_does_not_depend_on_the_queries_beside_it(case in case()) {
        for kernel in available() {
            let together = case.run(kernel);
            for query in 0..case.maxima.len() {
                let alone = case.query(query).run(kernel);
                let beside = together.query(query);
                prop_assert_eq!(alone.floats(), beside.floats(), "{:?}", kernel);
                prop_assert_eq!((alone.codes, alone.sums), (beside.codes, beside.sums), "{:?}", kernel);
            }
        }
    }

    #[test]
    fn codes_are_the_weights_of_an_ordinary_softmax(case in case()) {
        let found = case.run(scalar());
        for query in 0..case.maxima.len() {
            let (case, found) = (case.query(query), found.query(query));
            let scores = &case.scores[..case.valid];
            let maximum = scores.iter().copied().fold(case.maxima[0], f32::max);
            prop_assert_eq!(found.maxima[0], maximum);
            let power = |score: f32| f64::from(score - maximum).exp2();
            let close = |a: f32, b: f64, than: f64| (f64::from(a) - b).abs() <= than;
            prop_assert!(close(found.rescales[0], power(case.maxima[0]), 1e-5));
            let total = f64::from(case.totals[0]) * power(case.maxima[0])
                + scores.iter().map(|&score| power(score)).sum::<f64>();
            prop_assert!(close(found.totals[0], total, 1e-5 * total), "{} is not {}", found.totals[0], total);
            let scale = found.scales[0];
            for (i, &code) in found.codes.iter().enumerate() {
                let code = i32::from(code) + i32::from(WEIGHT_MIDDLE);
                prop_assert!(code >= 0 && (i < case.valid || code == 0), "code {} of token {}", code, i);
                if i < case.valid {
                    let weight = power(scores[i]) * f64::from(case.value_scales[i]);
                    let step = f64::from(scale);
                    prop_assert!(close(scale * code as f32, weight, 0.501 * step + 1e-30));
                }
            }
            prop_assert_eq!(found.sums[0], found.codes.iter().map(|&code| i32::from(code)).sum::<i32>());
            // The largest weight has the largest code, so that all of the range is used.
            prop_assert!(scale == 0.0 || found.codes.contains(&i8::MAX));
        }
    }
}

#[test]
fn a_number_that_is_not_finite_cannot_pass_unseen() {
    let usual = Case {
        scores: vec![1.0; PANEL],
        valid: 40,
        value_scales: [1e-2; PANEL],
        maxima: vec![0.5],
        totals: vec![1.0],
    };
    for kernel in available() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut case = usual.clone();
            case.scores[39] = bad;
            let found = case.run(kernel);
            assert!(!found.totals[0].is_finite(), "{kernel:?}: a score of {bad}");
            let sum: i32 = found.codes.iter().map(|&code| i32::from(code)).sum();
            assert_eq!(found.sums[0], sum, "{kernel:?}: whatever the codes are");
            let mut case = usual.clone();
            case.value_scales[39] = bad;
            let scale = case.run(kernel).scales[0];
            assert!(!scale.is_finite(), "{kernel:?}: a scale of {bad}");
        }
    }
}
