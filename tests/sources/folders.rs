//! The two small checkpoints that come with the repository.

use microgranite::cli::inspect::Report;
use microgranite::sources::{self, Checkpoint, Reference};

use crate::{fixture, offline};

fn open(name: &str) -> Checkpoint {
    sources::open(&Reference::Folder(fixture(name)), &offline()).unwrap()
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
    let tensors = checkpoint.tensors().unwrap();
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

/// Compares rows read here in pieces with the whole tensor read by candle.
#[test]
fn every_row_of_every_tensor_equals_what_candle_reads() {
    for name in ["granite-3-tiny", "granite-4-dense-tiny"] {
        let checkpoint = open(name);
        let tensors = checkpoint.tensors().unwrap();
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

#[test]
fn a_report_counts_every_value_once_and_says_what_int8_would_take() {
    let report = serde_json::to_value(Report::of(&open("granite-3-tiny")).unwrap()).unwrap();
    // 320 rows of embedding; per layer q, o, k, v, gate, up and down; two norms per layer and one at the end.
    let matrix_rows = 320 + 2 * (256 + 256 + 64 + 64 + 512 + 512 + 256);
    let matrices = 320 * 256 + 2 * (2 * 256 * 256 + 2 * 64 * 256 + 3 * 512 * 256);
    let norms = 5 * 256;
    assert_eq!(report["parameters"], matrices + norms);
    assert_eq!(report["bytes"]["stored"], 2 * (matrices + norms));
    assert_eq!(report["bytes"]["f32"], 4 * (matrices + norms));
    assert_eq!(
        report["bytes"]["int8"],
        matrices + 4 * matrix_rows + 4 * norms
    );
    assert_eq!(report["tensors"]["bf16"]["tensors"], 20);
    assert_eq!(report["config"]["num_key_value_heads"], 2);
    assert_eq!(report["tokenizer"]["special_tokens"], 4);
}
