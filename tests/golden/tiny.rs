//! Small checkpoints made from a seed, one of each Granite architecture.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use microgranite::sources;
use microgranite::study::reference::Arithmetic;

use crate::{checkpoint, reference, test_file};

const FIXTURES: [&str; 6] = [
    "granite-3-tiny",
    "granite-4-dense-tiny",
    "granite-3-moe-tiny",
    "granite-moe-shared-tiny",
    "granite-4-hybrid-tiny",
    "granite-4-hybrid-moe-tiny",
];

/// Those with a recording of 300 positions as well: experts and Mamba-2 layers.
const LONG: &[&str] = FIXTURES.split_at(2).1;

/// `input_ids` and `logits` of two sequences; `greedy`, 16 prompt ids and the 24 that follow.
fn recorded(fixture: &str) -> HashMap<String, Tensor> {
    let file = test_file("fixtures")
        .join(fixture)
        .join("reference.safetensors");
    candle_core::safetensors::load(file, &Device::Cpu).expect("the recorded outputs load")
}

pub fn rows(ids: &Tensor) -> Vec<Vec<u32>> {
    let rows = ids.to_vec2::<i64>().expect("rows of ids");
    rows.into_iter()
        .map(|row| row.into_iter().map(|id| id as u32).collect())
        .collect()
}

fn f32_reference(fixture: &str) -> microgranite::study::reference::Reference {
    let folder = test_file("fixtures").join(fixture);
    let checkpoint = checkpoint(&sources::Reference::Folder(folder));
    reference(&checkpoint, Arithmetic::F32)
}

/// The largest difference, relative to the largest logit of the sequence: logits near zero are differences of large
/// terms.
pub fn relative_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
    (found.iter().zip(expected))
        .map(|(a, b)| (a - b).abs() / largest)
        .fold(0f32, f32::max)
}

#[test]
fn logits_are_within_a_thousandth_of_the_recorded_ones_at_every_position() {
    for fixture in FIXTURES {
        let reference = f32_reference(fixture);
        let recorded = recorded(fixture);
        let expected = recorded["logits"].to_vec3::<f32>().expect("f32 logits");
        for (ids, expected) in rows(&recorded["input_ids"]).iter().zip(expected) {
            let expected = expected.concat();
            let found = reference.logits(ids).expect("the ids are in range");
            assert_eq!(found.len(), expected.len());
            let difference = relative_difference(&found, &expected);
            println!("{fixture}: largest difference {difference:.2e} of the largest logit");
            assert!(difference <= 1e-3, "{fixture}: {difference}");
        }
    }
}

#[test]
fn long_sequences_have_the_recorded_logits_and_continuations() {
    for fixture in LONG {
        let reference = f32_reference(fixture);
        let recorded = recorded(fixture);
        let ids = rows(&recorded["long_ids"]).remove(0);
        let expected = recorded["long_logits"].flatten_all().unwrap();
        let expected: Vec<f32> = expected.to_vec1().expect("f32 logits");
        let found = reference.logits(&ids).expect("the ids are in range");
        let difference = relative_difference(&found, &expected);
        println!("{fixture}: largest difference {difference:.2e} of the largest logit");
        assert!(difference <= 1e-3, "{fixture}: {difference}");
        let sequence = rows(&recorded["long_greedy"]).remove(0);
        let (prompt, expected) = sequence.split_at(300);
        let found = reference.greedy(prompt, expected.len());
        assert_eq!(found.unwrap(), expected, "{fixture}");
    }
}

#[test]
fn the_greedy_continuation_is_the_recorded_one() {
    for fixture in FIXTURES {
        let sequence = rows(&recorded(fixture)["greedy"]).remove(0);
        let (prompt, expected) = sequence.split_at(16);
        assert_eq!(expected.len(), 24);
        let found = f32_reference(fixture).greedy(prompt, expected.len());
        assert_eq!(found.unwrap(), expected, "{fixture}");
    }
}

#[test]
fn a_token_does_not_see_what_follows_it() {
    for fixture in FIXTURES {
        let reference = f32_reference(fixture);
        let ids = rows(&recorded(fixture)["input_ids"]).remove(0);
        let whole = reference.logits(&ids).unwrap();
        let part = reference.logits(&ids[..7]).unwrap();
        let difference = (whole.iter().zip(&part))
            .map(|(a, b)| (a - b).abs())
            .fold(0f32, f32::max);
        // Matrices of other heights may only be summed in a different order.
        assert!(difference < 1e-4, "{fixture}: {difference}");
    }
}

#[test]
fn an_id_beyond_the_vocabulary_is_an_error() {
    let reference = f32_reference(FIXTURES[0]);
    assert!(reference.logits(&[1, 320]).is_err());
    assert!(reference.logits(&[]).unwrap().is_empty());
}
