//! The two small checkpoints that come with the repository.

use std::path::{Path, PathBuf};

use microgranite::sources::{self, Checkpoint, Reference, Settings};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn open(name: &str) -> Checkpoint {
    let settings = Settings::from_variables(|_| None, false);
    sources::open(&Reference::Folder(fixture(name)), &settings).unwrap()
}

#[test]
fn a_folder_opens_with_its_name_config_and_end_of_text_id() {
    let checkpoint = open("granite-3-tiny");
    assert_eq!(checkpoint.name, "granite-3-tiny");
    assert_eq!(checkpoint.config["architectures"][0], "GraniteForCausalLM");
    assert_eq!(checkpoint.eos_token_ids, [0]);
    assert_eq!(checkpoint.chat_template, None);
    assert_eq!(
        checkpoint.config_file,
        fixture("granite-3-tiny/config.json")
    );
    let tensors = &checkpoint.tensors;
    let q = "model.layers.1.self_attn.q_proj.weight";
    assert_eq!(tensors.shape(q), Some(vec![256, 256]));
    assert_eq!(tensors.dtype(q), Some("bf16"));
    assert_eq!(tensors.names().len(), 2 * 9 + 2);
    assert_eq!(tensors.shape("lm_head.weight"), None);
}

#[test]
fn the_fixture_tokenizer_has_exactly_the_vocabulary_of_the_config() {
    for name in ["granite-3-tiny", "granite-4-dense-tiny"] {
        let checkpoint = open(name);
        let tokenizer = &checkpoint.tokenizer;
        assert_eq!(tokenizer.get_vocab_size(true), 320);
        assert_eq!(checkpoint.config["vocab_size"], 320);
        assert!((0..320).all(|id| tokenizer.id_to_token(id).is_some()));
        assert_eq!(tokenizer.token_to_id("<|end_of_text|>"), Some(0));
        let text = "The thing is to read and rest. \u{1f30d}\n\tZoë\u{0}";
        let ids = tokenizer.encode(text, true).unwrap().get_ids().to_vec();
        assert!(ids.len() < text.len(), "merges apply");
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    }
}

/// Two ways to the same numbers: rows read here in pieces, and the whole tensor read by candle.
#[test]
fn every_row_of_every_tensor_equals_what_candle_reads() {
    for name in ["granite-3-tiny", "granite-4-dense-tiny"] {
        let tensors = open(name).tensors;
        let file = fixture(name).join("model.safetensors");
        let expected = candle_core::safetensors::load(file, &candle_core::Device::Cpu).unwrap();
        assert_eq!(tensors.names().len(), expected.len());
        for (name, expected) in expected {
            let expected = expected.to_dtype(candle_core::DType::F32).unwrap();
            assert_eq!(tensors.shape(&name).unwrap(), expected.dims());
            let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
            let shape = tensors.shape(&name).unwrap();
            let k = shape[shape.len() - 1];
            let n = expected.len() / k;
            // 7 does not divide any of the row counts, so the last piece is shorter.
            for start in (0..n).step_by(7) {
                let rows = start..n.min(start + 7);
                let mut out = vec![0.0; rows.len() * k];
                tensors.read_rows(&name, rows.clone(), &mut out).unwrap();
                assert_eq!(out, expected[rows.start * k..rows.end * k], "{name}");
            }
        }
    }
}
