//! Smoothing and compensated rounding: they keep the model's function, and bring it closer to the floats.

use microgranite::model::{Forward, ModelConfig, Placement};
use microgranite::sources::Tensors;
use microgranite::study::calibrate::CalibrationRun;
use microgranite::study::evaluate::median;
use microgranite::study::pack::{self, Plan};
use microgranite::study::reference::{Arithmetic, Reference};
use microgranite::study::smooth::Smoothed;

use crate::{FIXTURES, fixture, load, open};

/// Sequences of ids over the fixtures' vocabulary.
fn sequences(count: u32) -> Vec<Vec<u32>> {
    let id = |sequence: u32, i: u32| (i * i * 7 + sequence * 31 + i * 13) % 320;
    let sequence = |sequence| (0..96).map(|i| id(sequence, i)).collect();
    (0..count).map(sequence).collect()
}

fn config(name: &str) -> ModelConfig {
    let checkpoint = open(&fixture(name));
    ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config).unwrap()
}

fn float_logits(config: &ModelConfig, tensors: &dyn Tensors, ids: &[u32]) -> Vec<f32> {
    let reference = Reference::load(config, tensors, Arithmetic::F32).unwrap();
    reference.logits(ids).unwrap()
}

#[test]
fn a_smoothed_model_computes_the_same_function() {
    for name in FIXTURES {
        let (config, checkpoint) = (config(name), open(&fixture(name)));
        let tensors = checkpoint.tensors().unwrap();
        let run = CalibrationRun::new(&config, tensors, &sequences(2)).unwrap();
        let smoothed = Smoothed::new(&config, tensors, run, 0.5, &mut |_, _| ()).unwrap();
        let ids = &sequences(1)[0];
        let expected = float_logits(&config, tensors, ids);
        let found = float_logits(&config, &smoothed, ids);
        let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let differences = expected.iter().zip(&found).map(|(a, b)| (a - b).abs());
        let most = differences.fold(0.0f32, f32::max);
        assert!(most < 1e-4 * largest, "{name}: {most} of {largest}");
        for tensor in [
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.mamba.in_proj.weight",
            "model.layers.0.mamba.out_proj.weight",
            "model.layers.0.mamba.norm.weight",
            "model.layers.0.block_sparse_moe.router.layer.weight",
            "model.layers.0.block_sparse_moe.input_linear.weight",
            "model.layers.0.shared_mlp.output_linear.weight",
        ] {
            let Some(shape) = tensors.shape(tensor) else {
                continue;
            };
            let width = shape[shape.len() - 1];
            // The last row: of experts, one of the last expert.
            let row = shape.iter().product::<usize>() / width - 1;
            let (mut before, mut after) = (vec![0.0; width], vec![0.0; width]);
            tensors
                .read_rows(tensor, row..row + 1, &mut before)
                .unwrap();
            smoothed
                .read_rows(tensor, row..row + 1, &mut after)
                .unwrap();
            assert_ne!(before, after, "{name}: {tensor}");
        }
    }
}

/// Squared distance between the logits of the packed and the float model: the mean over the tokens, or with experts the
/// median, because their mean is that of the few tokens whose router was near a tie.
fn distance(name: &str, plan: &Plan) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(fixture(name).join(file), folder.path().join(file)).unwrap();
    }
    let float = open(&fixture(name));
    pack::write(&float, plan, 2, folder.path(), &mut |_, _| ()).unwrap();
    let mut model = load(&open(folder.path()), Placement::Mmap);
    // Ids outside the calibration text.
    let ids: Vec<u32> = (0..300).map(|i| (i * i * 11 + 5) % 320).collect();
    let expected = float_logits(&config(name), float.tensors().unwrap(), &ids);
    let found = model.logits(&ids).to_vec();
    let vocab = model.vocab_size();
    let rows = expected.chunks_exact(vocab).zip(found.chunks_exact(vocab));
    let of_row = |(expected, found): (&[f32], &[f32])| {
        let pairs = expected.iter().zip(found);
        pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum()
    };
    let mut distances: Vec<f64> = rows.map(of_row).collect();
    distances.sort_by(f64::total_cmp);
    match name.contains("moe") {
        true => median(&distances),
        false => distances.iter().sum::<f64>() / distances.len() as f64,
    }
}

#[test]
fn compensated_rounding_comes_closer_to_the_floats() {
    for name in FIXTURES {
        let plain = distance(name, &Plan::default());
        let compensated = Plan {
            compensate: true,
            sequences: sequences(24),
            ..Plan::default()
        };
        let compensated = distance(name, &compensated);
        println!("{name}: {:.3}", compensated / plain);
        assert!(
            compensated < plain,
            "{name}: {compensated}, not below {plain}"
        );
    }
}

#[test]
fn smoothed_weights_are_served_and_close() {
    for name in FIXTURES {
        let plain = distance(name, &Plan::default());
        let smoothed = Plan {
            smooth: Some(0.5),
            sequences: sequences(4),
            ..Plan::default()
        };
        let smoothed = distance(name, &smoothed);
        println!("{name}: {:.3}", smoothed / plain);
        assert!(smoothed < 4.0 * plain, "{name}: {smoothed}, {plain}");
    }
}
