//! GGUF files made from a fixture, read back and compared with the fixture.

use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::{Device, Tensor};
use serde_json::json;

use microgranite::sources::generation::GenerationDefaults;
use microgranite::sources::{self, Checkpoint, Reference};

use crate::gguf_granite::{HEAD_DIM, KV_HEADS, LAYERS, granite, granite_3_tiny, names, tensor};
use crate::gguf_writer::{ARRAY, U32, array};
use crate::{assert_refused, offline};

pub fn open(path: &Path) -> microgranite::error::Result<Checkpoint> {
    sources::open(&Reference::Gguf(path.into()), &offline())
}

/// The inverse, as the reference for reading.
fn unpermute(tensor: &Tensor, heads: usize) -> Tensor {
    let k = tensor.dim(1).unwrap();
    let pairs = tensor.reshape((heads, HEAD_DIM / 2, 2, k)).unwrap();
    pairs
        .transpose(1, 2)
        .unwrap()
        .contiguous()
        .unwrap()
        .reshape((heads * HEAD_DIM, k))
        .unwrap()
}

#[test]
fn a_file_in_f32_or_bf16_has_exactly_the_weights_of_the_folder_it_was_made_from() {
    let folder = tempfile::tempdir().unwrap();
    let expected = granite_3_tiny();
    for dtype in [GgmlDType::F32, GgmlDType::BF16] {
        let path = folder.path().join("tiny.gguf");
        granite(dtype).write(&path);
        let opened = open(&path).unwrap();
        assert_eq!(
            opened.tensors().unwrap().names(),
            expected.tensors().unwrap().names()
        );
        for name in opened.tensors().unwrap().names() {
            let values = tensor(&opened, &name)
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap();
            let expected = tensor(&expected, &name)
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap();
            assert!(values == expected, "{name} as {dtype:?}");
        }
    }
}

#[test]
fn every_quantized_type_reads_as_candle_dequantizes_it_with_q_and_k_put_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    for (dtype, printed) in [
        (GgmlDType::F16, "f16"),
        (GgmlDType::Q8_0, "q8_0"),
        (GgmlDType::Q4_0, "q4_0"),
        (GgmlDType::Q4_1, "q4_1"),
        (GgmlDType::Q5_0, "q5_0"),
        (GgmlDType::Q5_1, "q5_1"),
        (GgmlDType::Q2K, "q2_k"),
        (GgmlDType::Q3K, "q3_k"),
        (GgmlDType::Q4K, "q4_k"),
        (GgmlDType::Q5K, "q5_k"),
        (GgmlDType::Q6K, "q6_k"),
    ] {
        granite(dtype).write(&path);
        let opened = open(&path).unwrap();
        let mut file = std::fs::File::open(&path).unwrap();
        let content = candle_core::quantized::gguf_file::Content::read(&mut file).unwrap();
        for (hf, name, heads) in names() {
            let stored = content.tensor(&mut file, &name, &Device::Cpu).unwrap();
            let mut expected = stored.dequantize(&Device::Cpu).unwrap();
            if let Some(heads) = heads {
                expected = unpermute(&expected, heads);
            }
            let values = tensor(&opened, &hf);
            assert_eq!(values.dims(), expected.dims());
            let same = values.flatten_all().unwrap().to_vec1::<f32>().unwrap()
                == expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(same, "{hf} as {dtype:?}");
        }
        assert_eq!(
            opened.tensors().unwrap().dtype("model.embed_tokens.weight"),
            Some(printed)
        );
        assert_eq!(
            opened.tensors().unwrap().dtype("model.norm.weight"),
            Some("f32")
        );
    }
}

#[test]
fn rows_in_the_middle_of_a_permuted_matrix_are_the_rows_of_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    granite(GgmlDType::Q8_0).write(&path);
    let opened = open(&path).unwrap();
    let name = "model.layers.1.self_attn.k_proj.weight";
    let whole = tensor(&opened, name)
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap();
    for rows in [0..1, 15..17, 31..34, 63..64, 5..5] {
        let mut piece = vec![0.0; rows.len() * 256];
        opened
            .tensors()
            .unwrap()
            .read_rows(name, rows.clone(), &mut piece)
            .unwrap();
        assert_eq!(piece, whole[rows.start * 256..rows.end * 256]);
    }
}

#[test]
fn metadata_becomes_the_configuration_the_fixture_has() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    granite(GgmlDType::Q8_0).write(&path);
    let opened = open(&path).unwrap();
    let expected = granite_3_tiny().config;
    for key in [
        "architectures",
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "embedding_multiplier",
        "attention_multiplier",
        "residual_multiplier",
        "logits_scaling",
        "tie_word_embeddings",
        "hidden_act",
        "bos_token_id",
    ] {
        assert_eq!(opened.config[key], expected[key], "{key}");
    }
    assert_eq!(opened.config["head_dim"], HEAD_DIM);
    assert_eq!(opened.config["rope_theta"], 1e7);
    assert_eq!(opened.eos_token_ids, [0]);
    assert_eq!(opened.chat_template.as_deref(), Some("{{ messages }}"));
    assert_eq!(opened.name, "tiny");
    assert_eq!(opened.config_file, path);
}

#[test]
fn the_tokenizer_in_a_file_gives_the_ids_of_the_tokenizer_it_was_made_from() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    granite(GgmlDType::Q8_0).write(&path);
    let opened = open(&path).unwrap().tokenizer;
    let original = granite_3_tiny().tokenizer;
    for text in [
        "The end.<|end_of_text|>\nAnd on",
        " it is 2024 — ½ \u{1f30d}",
        "",
        "<|unused_3|>\r\n\t x",
    ] {
        let expected = original.encode(text, true).unwrap();
        let encoding = opened.encode(text, true).unwrap();
        assert_eq!(encoding.get_ids(), expected.get_ids(), "{text:?}");
        for skip in [false, true] {
            let ids = expected.get_ids();
            assert_eq!(
                opened.decode(ids, skip).unwrap(),
                original.decode(ids, skip).unwrap()
            );
        }
    }
}

#[test]
fn dense_granite_4_writes_its_heads_per_layer_and_keys_that_do_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let mut gguf = granite(GgmlDType::Q8_0);
    let per_layer = vec![(KV_HEADS as u32).to_le_bytes().to_vec(); LAYERS];
    gguf.set(
        "granite.attention.head_count_kv",
        ARRAY,
        array(U32, &per_layer),
    );
    gguf.set_u32("granite.expert_count", 0);
    gguf.set_u32("granite.ssm.conv_kernel", 4);
    gguf.set(
        "granite.rope.scaling.finetuned",
        crate::gguf_writer::BOOL,
        vec![1],
    );
    gguf.write(&path);
    assert_eq!(open(&path).unwrap().config["num_key_value_heads"], KV_HEADS);
}

#[test]
fn a_llama_has_neutral_multipliers_and_its_own_head() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let mut gguf = granite(GgmlDType::F32);
    let own = |entry: &(String, u32, Vec<u8>)| {
        !entry.0.ends_with("_scale") && !entry.0.ends_with(".scale")
    };
    gguf.entries.retain(own);
    for entry in &mut gguf.entries {
        entry.0 = entry.0.replace("granite.", "llama.");
    }
    gguf.set_text("general.architecture", "llama");
    let embedding = gguf.tensor("token_embd.weight").clone();
    gguf.add_tensor(
        "output.weight",
        &embedding.dimensions,
        embedding.kind,
        embedding.data,
    );
    gguf.set_u32("tokenizer.ggml.eot_token_id", 317);
    gguf.write(&path);
    let opened = open(&path).unwrap();
    assert_eq!(opened.config["architectures"], json!(["LlamaForCausalLM"]));
    for key in [
        "embedding_multiplier",
        "residual_multiplier",
        "logits_scaling",
    ] {
        assert_eq!(opened.config[key], 1.0, "{key}");
    }
    let attention = opened.config["attention_multiplier"].as_f64().unwrap();
    assert!((attention - 32f64.sqrt().recip()).abs() < 1e-12);
    assert_eq!(opened.config["tie_word_embeddings"], false);
    assert_eq!(
        opened.tensors().unwrap().shape("lm_head.weight"),
        Some(vec![320, 256])
    );
    assert_eq!(opened.eos_token_ids, [0, 317]);
}

#[test]
fn absent_scales_of_a_granite_are_neutral_except_the_required_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let mut gguf = granite(GgmlDType::F32);
    gguf.remove("granite.residual_scale")
        .remove("granite.embedding_scale");
    gguf.set_f32("granite.attention.scale", 0.0);
    gguf.write(&path);
    let config = open(&path).unwrap().config;
    assert_eq!(config["residual_multiplier"], 1.0);
    assert_eq!(config["embedding_multiplier"], 1.0);
    let attention = config["attention_multiplier"].as_f64().unwrap();
    assert!((attention - 32f64.sqrt().recip()).abs() < 1e-12);
}

#[test]
fn how_tokens_are_chosen_is_read_and_kept_when_the_file_is_packed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let mut gguf = granite(GgmlDType::Q8_0);
    gguf.set_f32("general.sampling.temp", 0.6);
    gguf.set_f32("general.sampling.top_p", 0.95);
    gguf.set_u32("general.sampling.top_k", 20);
    gguf.write(&path);
    let expected = GenerationDefaults {
        temperature: Some(0.6),
        top_p: Some(0.95),
        top_k: Some(20),
        ..GenerationDefaults::default()
    };
    assert_eq!(open(&path).unwrap().generation, expected);

    let packed = folder.path().join("packed");
    let mut quantize = std::process::Command::new(env!("CARGO_BIN_EXE_microgranite"));
    quantize.args(["quantize", "--rounding", "nearest", "--log", "error"]);
    let made = quantize.arg(&path).arg("-o").arg(&packed).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let opened = sources::open(&Reference::Folder(packed), &offline()).unwrap();
    assert_eq!(opened.generation, expected);
    assert_eq!(opened.eos_token_ids, [0]);

    gguf.set_f32("general.sampling.top_p", 1.5).write(&path);
    assert_refused(open(&path), 65, &["general.sampling.top_p", "1.5"]);
}
