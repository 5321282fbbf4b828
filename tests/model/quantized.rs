//! Checkpoints that are already int8: their codes and scales reach the kernels unchanged.

use std::ops::Range;
use std::path::PathBuf;

use microgranite::error::Result;
use microgranite::int8::GROUP;
use microgranite::int8::kernels;
use microgranite::int8::matrix::Matrix;
use microgranite::int8::rotation::Rotation;
use microgranite::model::weights::{Attention, FeedForward, Mixer, SwiGlu};
use microgranite::model::{self, ModelConfig};
use microgranite::sources::{Checkpoint, Contents, Tensors};
use microgranite::study::evaluate::log_softmax;
use microgranite::study::reference::{Arithmetic, Reference};
use microgranite::study::weight_error;

use crate::{checkpoint, fixture, load, token_by_token};

const FIXTURES: [&str; 3] = [
    "granite-3-tiny-w8a8",
    "granite-4-dense-tiny-w8a8-zp",
    "granite-3-tiny-llm-int8",
];

fn reference(checkpoint: &Checkpoint) -> Reference {
    let config = ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config).unwrap();
    Reference::load(&config, checkpoint.tensors().unwrap(), Arithmetic::F32).unwrap()
}

/// Column `column` of a packed matrix as floats.
fn column(matrix: &Matrix, column: usize) -> Vec<f32> {
    let mut values = vec![0.0; matrix.depth()];
    for (group, values) in values.chunks_mut(GROUP).enumerate() {
        matrix.dequantize_group(kernels::best(), column, group, values);
    }
    values
}

#[test]
fn packed_matrices_hold_the_codes_of_the_file_without_rotation() {
    for name in FIXTURES {
        let (checkpoint, model) = (checkpoint(name), load(name, 2));
        let residual = model.config().residual_multiplier;
        let row = |tensor: &str, row: usize, depth: usize| {
            let mut values = vec![0.0; depth];
            checkpoint
                .tensors()
                .unwrap()
                .read_rows(tensor, row..row + 1, &mut values)
                .unwrap();
            values
        };
        // The stacked matrix begins with the queries; the residual multiplier is folded into the other's scales.
        for (index, layer) in model.weights().layers.iter().enumerate() {
            let (
                Mixer::Attention(Attention { qkv, output }),
                FeedForward::Dense(SwiGlu { gate_up, down }),
            ) = (&layer.mixer, &layer.feed_forward)
            else {
                panic!("a dense layer");
            };
            for matrix in [qkv, output, gate_up, down] {
                assert_eq!(matrix.rotation(), Rotation::None);
            }
            let tensor = |part: &str| format!("model.layers.{index}.self_attn.{part}.weight");
            for n in 0..256 {
                assert_eq!(
                    column(qkv, n),
                    row(&tensor("q_proj"), n, 256),
                    "{name} {index} {n}"
                );
            }
            let keys = model.config().num_kv_heads * model.config().head_dim;
            for n in 0..keys {
                assert_eq!(column(qkv, 256 + keys + n), row(&tensor("v_proj"), n, 256));
            }
            for n in 0..256 {
                // Folding rounds the scale once, and computing the weight rounds once more.
                for (found, expected) in
                    column(output, n).iter().zip(row(&tensor("o_proj"), n, 256))
                {
                    let expected = expected * residual;
                    assert!(
                        (found - expected).abs() <= 2.0 * f32::EPSILON * expected.abs(),
                        "{found} {expected}"
                    );
                }
            }
        }
        assert_eq!(model.weights().embedding.rotation(), Rotation::Full);
    }
}

#[test]
fn dequantized_weights_give_the_logits_that_transformers_computes_from_them() {
    for name in FIXTURES {
        let (ids, expected) = recorded(name);
        let found = reference(&checkpoint(name)).logits(&ids).unwrap();
        let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
        let differences = found
            .iter()
            .zip(&expected)
            .map(|(a, b)| (a - b).abs() / largest);
        let difference = differences.fold(0f32, f32::max);
        println!("{name}: largest difference {difference:.2e} of the largest logit");
        assert!(
            found.len() == expected.len() && difference < 1e-4,
            "{name}: {difference}"
        );
    }
}

#[test]
fn int8_logits_are_close_to_those_of_the_dequantized_weights() {
    for name in FIXTURES {
        let (ids, expected) = recorded(name);
        let vocab = expected.len() / ids.len();
        let found = token_by_token(&mut load(name, 2), &ids, 0);
        let rows = found.chunks_exact(vocab).zip(expected.chunks_exact(vocab));
        let divergence: f64 = rows
            .map(|(found, expected)| {
                let (p, q) = (log_softmax(expected), log_softmax(found));
                p.iter()
                    .zip(&q)
                    .map(|(p, q)| p.exp() * (p - q))
                    .sum::<f64>()
            })
            .sum();
        let mean = divergence / ids.len() as f64;
        println!("{name}: mean KL {mean:.2e}");
        assert!(mean < 1e-5, "{name}: mean KL {mean}");
    }
}

fn recorded(name: &str) -> (Vec<u32>, Vec<f32>) {
    let file = fixture(name).join("reference.safetensors");
    let tensors = candle_core::safetensors::load(file, &candle_core::Device::Cpu).unwrap();
    let ids: Vec<i64> = tensors["input_ids"]
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap();
    let logits = tensors["logits"].flatten_all().unwrap().to_vec1().unwrap();
    (ids.into_iter().map(|id| id as u32).collect(), logits)
}

/// The small Granite, with the outlier column of `down_proj` reduced to the size of its neighbours.
struct Tamed(Checkpoint);

/// Six times as large as the others, in both layers.
const OUTLIER: usize = 3;

impl Tensors for Tamed {
    fn file(&self, name: &str) -> PathBuf {
        self.0.tensors().unwrap().file(name)
    }
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.tensors().unwrap().shape(name)
    }
    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.0.tensors().unwrap().read_rows(name, rows, out)?;
        if name.ends_with("down_proj.weight") {
            out.chunks_exact_mut(512)
                .for_each(|row| row[OUTLIER] /= 6.0);
        }
        Ok(())
    }
    fn names(&self) -> Vec<String> {
        self.0.tensors().unwrap().names()
    }
    fn stored_bytes(&self) -> u64 {
        self.0.tensors().unwrap().stored_bytes()
    }
}

/// The relative error of `down_proj` in each layer.
fn errors_of_down(checkpoint: &Checkpoint) -> Vec<f64> {
    let settings = model::Settings {
        threads: 2,
        slots: 4,
        snapshots: 0,
        kv_bytes: 1 << 20,
        context: None,
        weights: model::Placement::default(),
    };
    let mut model = model::load(checkpoint, &settings, &mut |_, _| ()).unwrap();
    let mut errors =
        weight_error::measure(&mut model, checkpoint.tensors().unwrap(), &mut |_, _| ()).unwrap();
    errors.retain(|error| error.tensor.ends_with("down_proj.weight"));
    errors.sort_by(|a, b| a.tensor.cmp(&b.tensor));
    errors
        .into_iter()
        .map(|error| error.relative_error)
        .collect()
}

#[test]
fn an_outlier_column_costs_less_than_a_hundredth_more_error() {
    let wild = checkpoint("granite-3-tiny");
    let mut row = vec![0.0; 512];
    let mut of_column = [0f32; 512];
    for n in 0..256 {
        wild.tensors()
            .unwrap()
            .read_rows("model.layers.0.mlp.down_proj.weight", n..n + 1, &mut row)
            .unwrap();
        of_column
            .iter_mut()
            .zip(&row)
            .for_each(|(sum, value)| *sum += value * value);
    }
    let typical = of_column.iter().sum::<f32>() / 512.0;
    assert!(
        of_column[OUTLIER] > 20.0 * typical,
        "the fixture has an outlier"
    );

    let tame = Checkpoint {
        contents: Contents::Original(Box::new(Tamed(checkpoint("granite-3-tiny")))),
        ..checkpoint("granite-3-tiny")
    };
    for (wild, tame) in errors_of_down(&wild).iter().zip(errors_of_down(&tame)) {
        println!("relative error of down_proj: {wild:.6} with the outlier, {tame:.6} without");
        assert!(*wild < 1.01 * tame, "{wild} against {tame}");
    }
}
