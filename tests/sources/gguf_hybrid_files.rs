//! GGUF files of hybrids and mixtures of experts, compared with the folders that they were made from.

use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::quantized::{GgmlDType, gguf_file};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use microgranite::model::{self, Granite, ModelConfig};
use microgranite::sources::{self, Checkpoint, Reference};
use microgranite::study::reference::{self, Arithmetic};

use crate::gguf_files::open;
use crate::gguf_granite::tensor;
use crate::gguf_hybrid::{ALL, HYBRID, HYBRID_WITH_EXPERTS, MIXTURE, gguf, rates, safetensors};
use crate::gguf_writer::Gguf;
use crate::{assert_refused, fixture, offline};

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn config(checkpoint: &Checkpoint) -> ModelConfig {
    ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config).unwrap()
}

fn try_load(checkpoint: &Checkpoint) -> microgranite::error::Result<Granite> {
    let settings = model::Settings {
        threads: 2,
        slots: 1,
        snapshots: 0,
        kv_bytes: 4 << 20,
        context: None,
        weights: model::Placement::default(),
    };
    model::load(checkpoint, &settings, &mut |_, _| ())
}

/// The bits of the int8 model's logits, at each of 100 positions.
fn int8_bits(checkpoint: &Checkpoint) -> Vec<u32> {
    let ids: Vec<u32> = (0..100u32).map(|i| (i * i * 7 + i * 13) % 320).collect();
    let mut model = try_load(checkpoint).unwrap();
    model.logits(&ids).iter().map(|x| x.to_bits()).collect()
}

/// Writes a file and opens it.
fn written(gguf: &Gguf) -> (tempfile::TempDir, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    gguf.write(&path);
    let opened = open(&path).unwrap();
    (folder, opened)
}

#[test]
fn a_file_in_f32_has_exactly_the_configuration_and_weights_of_its_folder() {
    for name in ALL {
        let expected = safetensors(name);
        let (_folder, opened) = written(&gguf(name, |_| GgmlDType::F32));
        let mut expected_config = config(&expected);
        if expected_config.mamba.is_some() {
            // The file does not say what the model was trained on.
            expected_config.max_positions = 131_072;
        }
        assert_eq!(config(&opened), expected_config, "{name}");
        let mut names = expected.tensors().unwrap().names();
        for name in &mut names {
            let found = name.replace(".A_log", ".A");
            let mut expected = tensor(&expected, name);
            if found != *name {
                expected = rates(&expected);
            }
            let opened = tensor(&opened, &found);
            assert_eq!(opened.dims(), expected.dims(), "{name}");
            assert!(values(&opened) == values(&expected), "{name}");
            *name = found;
        }
        names.sort();
        assert_eq!(opened.tensors().unwrap().names(), names);
    }
}

#[test]
fn a_file_in_f32_gives_the_ids_and_the_int8_bits_of_its_folder() {
    for name in ALL {
        let (_folder, opened) = written(&gguf(name, |_| GgmlDType::F32));
        let recorded = fixture(name).join("reference.safetensors");
        let recorded = candle_core::safetensors::load(recorded, &Device::Cpu).unwrap();
        let greedy = recorded["greedy"].to_vec2::<i64>().unwrap().remove(0);
        let greedy: Vec<u32> = greedy.into_iter().map(|id| id as u32).collect();
        let (prompt, expected) = greedy.split_at(16);
        let tensors = opened.tensors().unwrap();
        let reference =
            reference::Reference::load(&config(&opened), tensors, Arithmetic::F32).unwrap();
        assert_eq!(reference.greedy(prompt, 24).unwrap(), expected, "{name}");
        assert!(
            int8_bits(&opened) == int8_bits(&safetensors(name)),
            "{name}"
        );
    }
}

/// As in files of K-quants, where one may be Q4_K and the other Q6_K.
#[test]
fn gate_and_up_of_different_types_are_rows_of_one_tensor() {
    for (name, fused, [gate, up], dimension) in [
        (HYBRID, "shared_mlp.input_linear", ["ffn_gate", "ffn_up"], 0),
        (
            HYBRID_WITH_EXPERTS,
            "shared_mlp.input_linear",
            ["ffn_gate_shexp", "ffn_up_shexp"],
            0,
        ),
        (
            MIXTURE,
            "block_sparse_moe.input_linear",
            ["ffn_gate_exps", "ffn_up_exps"],
            1,
        ),
    ] {
        let (folder, opened) = written(&gguf(name, |part| match part {
            _ if part.contains("up") => GgmlDType::Q8_0,
            _ => GgmlDType::Q4_1,
        }));
        let mut file = std::fs::File::open(folder.path().join("tiny.gguf")).unwrap();
        let content = gguf_file::Content::read(&mut file).unwrap();
        let [gate, up] = [gate, up].map(|part| {
            let name = format!("blk.1.{part}.weight");
            let stored = content.tensor(&mut file, &name, &Device::Cpu).unwrap();
            stored.dequantize(&Device::Cpu).unwrap()
        });
        let expected = Tensor::cat(&[gate, up], dimension).unwrap();
        let fused = format!("model.layers.1.{fused}.weight");
        let found = tensor(&opened, &fused);
        assert_eq!(found.dims(), expected.dims(), "{name}");
        let whole = values(&expected);
        assert!(values(&found) == whole, "{name}");
        assert_eq!(opened.tensors().unwrap().dtype(&fused), Some("mixed"));

        let (k, rows) = (128, whole.len() / 128);
        for rows in [
            0..1,
            62..66,
            rows / 2 - 3..rows / 2 + 1,
            rows - 1..rows,
            5..5,
        ] {
            let mut piece = vec![0.0; rows.len() * k];
            let read = opened
                .tensors()
                .unwrap()
                .read_rows(&fused, rows.clone(), &mut piece);
            read.unwrap();
            assert!(
                piece == whole[rows.start * k..rows.end * k],
                "{name}: {rows:?}"
            );
        }
        try_load(&opened).unwrap();
    }
}

#[test]
fn vectors_are_vectors_whatever_dimensions_of_one_they_have() {
    for (part, dimensions) in [
        ("ssm_a", vec![4]),
        ("ssm_d", vec![4]),
        ("ssm_norm.weight", vec![256]),
        ("ssm_norm.weight", vec![1, 256]),
    ] {
        let mut gguf = gguf(HYBRID_WITH_EXPERTS, |_| GgmlDType::F32);
        gguf.tensor(&format!("blk.0.{part}")).dimensions = dimensions;
        let (_folder, opened) = written(&gguf);
        let changed = int8_bits(&opened);
        assert!(
            changed == int8_bits(&safetensors(HYBRID_WITH_EXPERTS)),
            "{part}"
        );
    }
}

#[test]
fn keys_that_a_hybrid_may_lack_or_say_otherwise() {
    for (change, field, expected) in [
        (
            ("context_length", Some(65_536)),
            "max_position_embeddings",
            json!(65_536),
        ),
        (
            ("attention.scale", None),
            "attention_multiplier",
            json!(32f64.sqrt().recip()),
        ),
        (("logit_scale", None), "logits_scaling", json!(1.0)),
        (("rope.freq_base", None), "rope_theta", json!(10_000.0)),
        (("rope.dimension_count", None), "head_dim", json!(32)),
        (
            ("expert_shared_feed_forward_length", None),
            "shared_intermediate_size",
            json!(256),
        ),
        (
            ("expert_shared_feed_forward_length", Some(999)),
            "shared_intermediate_size",
            json!(256),
        ),
    ] {
        let mut gguf = gguf(HYBRID, |_| GgmlDType::Q8_0);
        let key = format!("granitehybrid.{}", change.0);
        match change.1 {
            Some(value) => gguf.set_u32(&key, value),
            None => gguf.remove(&key),
        };
        let (_folder, opened) = written(&gguf);
        assert_eq!(opened.config[field], expected, "{key}");
        config(&opened);
    }
}

#[test]
fn a_rate_that_is_not_negative_and_finite_is_refused() {
    for wrong in [0.0, 0.5, f32::NAN, f32::NEG_INFINITY] {
        let mut gguf = gguf(HYBRID, |_| GgmlDType::Q8_0);
        gguf.tensor("blk.3.ssm_a").data[8..12].copy_from_slice(&wrong.to_le_bytes());
        let (_folder, opened) = written(&gguf);
        let name = "model.layers.3.mamba.A: ";
        let what = if wrong.is_finite() {
            "negative"
        } else {
            "finite"
        };
        assert_refused(try_load(&opened), 65, &["tiny.gguf", name, what]);
    }
}

fn run(arguments: &[&str], paths: &[&Path]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_microgranite"));
    let made = command.args(arguments).args(paths).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    String::from_utf8(made.stdout).unwrap()
}

#[test]
fn inspect_describes_such_files_and_quantize_packs_them() {
    for (name, architecture) in [
        (HYBRID, "GraniteMoeHybridForCausalLM"),
        (HYBRID_WITH_EXPERTS, "GraniteMoeHybridForCausalLM"),
        (MIXTURE, "GraniteMoeForCausalLM"),
    ] {
        let file: PathBuf = fixture(name).join(format!("{name}-Q8_0.gguf"));
        let report = run(&["inspect", "--json", "--log", "error"], &[&file]);
        let report: Value = serde_json::from_str(&report).unwrap();
        assert_eq!(report["architecture"], architecture);
        let source = safetensors(name);
        let shape = config(&source);
        let read = &report["config"];
        assert_eq!(read["num_hidden_layers"], shape.num_layers());
        assert_eq!(
            read["mamba_n_heads"].as_u64(),
            shape.mamba.map(|m| m.heads as u64)
        );
        let experts = shape.experts.map(|experts| experts.count as u64);
        assert_eq!(read["num_local_experts"].as_u64(), experts);

        let folder = tempfile::tempdir().unwrap();
        let packed = folder.path().join("packed");
        let arguments = ["quantize", "--rounding", "nearest", "--log", "error"];
        run(&arguments, &[&file, Path::new("-o"), &packed]);
        let packed = sources::open(&Reference::Folder(packed), &offline()).unwrap();
        assert!(
            int8_bits(&packed) == int8_bits(&open(&file).unwrap()),
            "{name}"
        );
    }
}
