//! GGUF files of hybrids and mixtures of experts, as llama.cpp's converter writes them, against what was recorded of
//! their dequantized weights.

use candle_core::Device;
use microgranite::sources;
use microgranite::study::reference::Arithmetic;

use crate::tiny::{relative_difference, rows};
use crate::{checkpoint, reference, test_file};

#[test]
fn a_q8_0_file_has_the_recorded_logits() {
    for fixture in [
        "granite-4-hybrid-tiny",
        "granite-4-hybrid-moe-tiny",
        "granite-3-moe-tiny",
    ] {
        let folder = test_file("fixtures").join(fixture);
        let file = folder.join(format!("{fixture}-Q8_0.gguf"));
        let recorded = folder.join("reference-Q8_0.safetensors");
        let recorded = candle_core::safetensors::load(recorded, &Device::Cpu).expect("it loads");
        let reference = reference(
            &checkpoint(&sources::Reference::Gguf(file)),
            Arithmetic::F32,
        );
        for (ids, logits) in [("input_ids", "logits"), ("long_ids", "long_logits")] {
            let expected = recorded[logits].to_vec3::<f32>().expect("f32 logits");
            for (ids, expected) in rows(&recorded[ids]).iter().zip(expected) {
                let found = reference.logits(ids).expect("the ids are in range");
                let difference = relative_difference(&found, &expected.concat());
                println!("{fixture}: largest difference {difference:.2e} of the largest logit");
                assert!(difference <= 1e-3, "{fixture}: {difference}");
            }
        }
    }
}
