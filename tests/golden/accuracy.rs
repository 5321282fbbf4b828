//! The loss by rounding on ordinary text: mean KL of the next-token distributions against f32, same weights.

use microgranite::model::{self, Granite};
use microgranite::sources::{self, Checkpoint};
use microgranite::study::calibrate::SEQUENCE_TOKENS;
use microgranite::study::evaluate::{self, Comparison};
use microgranite::study::pack::{self, Plan};
use microgranite::study::reference::Arithmetic;
use microgranite::text::samples;

use crate::{checkpoint, reference};

/// The demo model's ids for the built-in text.
pub fn text_ids(checkpoint: &Checkpoint) -> Vec<u32> {
    let encoded = checkpoint.tokenizer.encode(samples::ALICE, false).unwrap();
    // Seven complete windows: enough to make the standard error of the mean KL a few percent of it.
    encoded.get_ids()[..7 * evaluate::WINDOW_TOKENS].to_vec()
}

/// The model as `quantize` packs it by default: rounding errors compensated on the built-in calibration text.
fn compensated(checkpoint: &Checkpoint, settings: &model::Settings) -> Granite {
    let folder = tempfile::tempdir().unwrap();
    let config = checkpoint.config.to_string();
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let tokenizer = folder.path().join("tokenizer.json");
    checkpoint.tokenizer.save(tokenizer, false).unwrap();
    let text = samples::AS_YOU_LIKE_IT;
    let encoded = checkpoint.tokenizer.encode(text, false).unwrap();
    let sequences = encoded.get_ids()[..4096].chunks(SEQUENCE_TOKENS);
    let plan = Plan {
        compensate: true,
        sequences: sequences.map(<[u32]>::to_vec).collect(),
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
        threads: 2,
        kv_bytes: 64 << 20,
        context: None,
        weights: model::Placement::default(),
    };
    let mut int8 = model::load(&checkpoint, &settings, &mut |_, _| ()).expect("the demo loads");
    let mut packed = compensated(&checkpoint, &settings);
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
