//! The loss by rounding on ordinary text: mean KL of the next-token distributions against f32, same weights.

use microgranite::model::{self, Granite};
use microgranite::sources::{self, Checkpoint};
use microgranite::study::calibrate::SEQUENCE_TOKENS;
use microgranite::study::evaluate::{self, Comparison};
use microgranite::study::pack::{self, Plan};
use microgranite::study::reference::Arithmetic;
use microgranite::text::samples;

use crate::{checkpoint, reference, settings};

/// The mean and the median of the KL divergences of `found` from `expected`, row by row.
fn mean_and_median(vocab: usize, pairs: &[(Vec<f32>, Vec<f32>)]) -> (f64, f64) {
    let rows = pairs
        .iter()
        .flat_map(|(expected, found)| expected.chunks_exact(vocab).zip(found.chunks_exact(vocab)));
    let divergence = |(p, q): (&[f32], &[f32])| {
        let (p, q) = (evaluate::log_softmax(p), evaluate::log_softmax(q));
        p.iter()
            .zip(&q)
            .map(|(p, q)| p.exp() * (p - q))
            .sum::<f64>()
    };
    let mut all: Vec<f64> = rows.map(divergence).collect();
    all.sort_by(f64::total_cmp);
    (
        all.iter().sum::<f64>() / all.len() as f64,
        all[all.len() / 2],
    )
}

/// Sequences of ids that no text has; `seed` makes them differ.
fn sequences(seed: u32, count: u32) -> Vec<Vec<u32>> {
    let id =
        |sequence: u32, i: u32| (seed + sequence * 101 + i * i * 7 + i * (13 + sequence)) % 320;
    (0..count)
        .map(|sequence| (0..300).map(|i| id(sequence, i)).collect())
        .collect()
}

#[test]
fn int8_costs_hybrids_and_experts_no_more_than_q8_0_and_a_fifth() {
    let settings = settings();
    for fixture in [
        "granite-4-hybrid-tiny",
        "granite-4-hybrid-moe-tiny",
        "granite-3-moe-tiny",
        "granite-moe-shared-tiny",
    ] {
        let folder = crate::test_file("fixtures").join(fixture);
        let checkpoint = checkpoint(&sources::Reference::Folder(folder));
        let exact = reference(&checkpoint, Arithmetic::F32);
        let q8_0 = reference(&checkpoint, Arithmetic::Q8_0);
        let mut nearest = model::load(&checkpoint, &settings, &mut |_, _| ()).expect("it loads");
        let mut packed = compensated(&checkpoint, sequences(5, 16), &settings);
        let vocab = nearest.config().vocab_size;
        let mut pairs: [Vec<(Vec<f32>, Vec<f32>)>; 3] = Default::default();
        for ids in sequences(1, 5) {
            let expected = exact.logits(&ids).unwrap();
            let others = [
                q8_0.logits(&ids).unwrap(),
                nearest.logits(&ids).to_vec(),
                packed.logits(&ids).to_vec(),
            ];
            for (pairs, other) in pairs.iter_mut().zip(others) {
                pairs.push((expected.clone(), other));
            }
        }
        let [q8_0, nearest, packed] = pairs.map(|pairs| mean_and_median(vocab, &pairs));
        println!(
            "{fixture}: mean and median KL: Q8_0 {q8_0:.4?}, nearest {nearest:.4?}, compensated {packed:.4?}"
        );
        // With experts the mean is that of a few tokens whose router was near a tie and chose another expert, in either
        // arithmetic; it says little.
        // Without calibration, weights without outliers favour Q8_0's small blocks where matrices are as shallow as here.
        let most = if fixture.contains("hybrid") {
            1.2
        } else {
            1.35
        };
        assert!(nearest.1 <= most * q8_0.1, "{fixture}: median of nearest");
        assert!(packed.1 <= 1.2 * q8_0.1, "{fixture}: median of compensated");
        if !fixture.contains("moe") {
            assert!(packed.0 <= 1.2 * q8_0.0, "{fixture}: mean of compensated");
        }
    }
}

/// The demo model's ids for the built-in text.
pub fn text_ids(checkpoint: &Checkpoint) -> Vec<u32> {
    let encoded = checkpoint.tokenizer.encode(samples::ALICE, false).unwrap();
    // Seven complete windows: enough to make the standard error of the mean KL a few percent of it.
    encoded.get_ids()[..7 * evaluate::WINDOW_TOKENS].to_vec()
}

/// The model as `quantize` packs it by default: rounding errors compensated on calibration `sequences`.
fn compensated(
    checkpoint: &Checkpoint,
    sequences: Vec<Vec<u32>>,
    settings: &model::Settings,
) -> Granite {
    let folder = tempfile::tempdir().unwrap();
    let config = checkpoint.config.to_string();
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let tokenizer = folder.path().join("tokenizer.json");
    checkpoint.tokenizer.save(tokenizer, false).unwrap();
    let plan = Plan {
        compensate: true,
        sequences,
        ..Plan::default()
    };
    pack::write(checkpoint, &plan, 2, folder.path(), &mut |_, _| ()).unwrap();
    let packed = crate::checkpoint(&sources::Reference::Folder(folder.path().into()));
    model::load(&packed, settings, &mut |_, _| ()).expect("what was packed loads")
}

#[test]
#[ignore = "needs the demo model: run `microgranite pull demo`"]
fn int8_costs_no_more_than_q8_0_and_a_fifth_and_packed_three_tenths_less() {
    let checkpoint = checkpoint(&sources::Reference::Demo);
    let f32 = reference(&checkpoint, Arithmetic::F32);
    let q8_0 = reference(&checkpoint, Arithmetic::Q8_0);
    let settings = model::Settings {
        slots: 4,
        kv_bytes: 64 << 20,
        ..settings()
    };
    let mut int8 = model::load(&checkpoint, &settings, &mut |_, _| ()).expect("the demo loads");
    let text = samples::AS_YOU_LIKE_IT;
    let encoded = checkpoint.tokenizer.encode(text, false).unwrap();
    let sequences = encoded.get_ids()[..4096].chunks(SEQUENCE_TOKENS);
    let sequences = sequences.map(<[u32]>::to_vec).collect();
    let mut packed = compensated(&checkpoint, sequences, &settings);
    let mut found: [Comparison; 3] = Default::default();
    for ids in text_ids(&checkpoint).chunks(evaluate::WINDOW_TOKENS) {
        let expected = f32.logits(ids).unwrap();
        let others = [
            &q8_0.logits(ids).unwrap()[..],
            int8.logits(ids),
            packed.logits(ids),
        ];
        for (found, other) in found.iter_mut().zip(others) {
            found.add_window(ids, &expected, other).unwrap();
        }
    }
    let [q8_0, int8, packed] = found.map(|found| found.finish().unwrap());
    for (name, found) in [("Q8_0", &q8_0), ("int8", &int8), ("packed", &packed)] {
        println!("{name}: {}", serde_json::to_string(found).unwrap());
    }
    println!("int8 / Q8_0: {:.3}", int8.kl_mean / q8_0.kl_mean);
    assert!(int8.tokens >= 3_000, "{} tokens", int8.tokens);
    assert!(
        int8.kl_mean <= 1.2 * q8_0.kl_mean,
        "{} against {}",
        int8.kl_mean,
        q8_0.kl_mean
    );
    println!("packed / Q8_0: {:.3}", packed.kl_mean / q8_0.kl_mean);
    assert!(
        packed.kl_mean <= 0.7 * q8_0.kl_mean,
        "{} against {}",
        packed.kl_mean,
        q8_0.kl_mean
    );
    // Another implementation of Q8_0 measured 0.0043 to 0.0045 and 95 % on another novel: half and twice that allow for
    // the text, but not for a mistake.
    assert!((0.002..0.009).contains(&q8_0.kl_mean), "{}", q8_0.kl_mean);
    assert!(q8_0.same_top_token > 0.93, "{}", q8_0.same_top_token);
}
