//! The small Granite as a GGUF file.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use microgranite::sources::{self, Checkpoint, Reference};

use crate::gguf_writer::{ARRAY, Gguf, I32, array};
use crate::{fixture, offline};

pub const LAYERS: usize = 2;
pub const HEAD_DIM: usize = 32;
pub const HEADS: usize = 8;
pub const KV_HEADS: usize = 2;

pub fn granite_3_tiny() -> Checkpoint {
    sources::open(&Reference::Folder(fixture("granite-3-tiny")), &offline()).unwrap()
}

/// A tensor of a checkpoint as candle holds it.
pub fn tensor(checkpoint: &Checkpoint, name: &str) -> Tensor {
    let shape = checkpoint.tensors().unwrap().shape(name).unwrap();
    let mut values = vec![0.0; shape.iter().product()];
    let rows = shape[..shape.len() - 1].iter().product();
    checkpoint
        .tensors()
        .unwrap()
        .read_rows(name, 0..rows, &mut values)
        .unwrap();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Hugging Face name, GGUF name, and the number of heads for the tensors whose rows llama.cpp's converter moves.
pub fn names() -> Vec<(String, String, Option<usize>)> {
    let mut names = vec![
        (
            "model.embed_tokens.weight".into(),
            "token_embd.weight".into(),
            None,
        ),
        (
            "model.norm.weight".into(),
            "output_norm.weight".into(),
            None,
        ),
    ];
    for layer in 0..LAYERS {
        for (hf, gguf, heads) in [
            ("input_layernorm", "attn_norm", None),
            ("self_attn.q_proj", "attn_q", Some(HEADS)),
            ("self_attn.k_proj", "attn_k", Some(KV_HEADS)),
            ("self_attn.v_proj", "attn_v", None),
            ("self_attn.o_proj", "attn_output", None),
            ("post_attention_layernorm", "ffn_norm", None),
            ("mlp.gate_proj", "ffn_gate", None),
            ("mlp.up_proj", "ffn_up", None),
            ("mlp.down_proj", "ffn_down", None),
        ] {
            let hf = format!("model.layers.{layer}.{hf}.weight");
            names.push((hf, format!("blk.{layer}.{gguf}.weight"), heads));
        }
    }
    names
}

/// What llama.cpp's converter does to Q and K: `reshape(heads, 2, d/2, k).swapaxes(1, 2)`.
pub fn permute(tensor: &Tensor, heads: usize) -> Tensor {
    let k = tensor.dim(1).unwrap();
    let halves = tensor.reshape((heads, 2, HEAD_DIM / 2, k)).unwrap();
    halves
        .transpose(1, 2)
        .unwrap()
        .contiguous()
        .unwrap()
        .reshape((heads * HEAD_DIM, k))
        .unwrap()
}

/// The number of a candle type in a file.
pub fn ggml_number(dtype: GgmlDType) -> u32 {
    match dtype {
        GgmlDType::F32 => 0,
        GgmlDType::F16 => 1,
        GgmlDType::Q4_0 => 2,
        GgmlDType::Q4_1 => 3,
        GgmlDType::Q5_0 => 6,
        GgmlDType::Q5_1 => 7,
        GgmlDType::Q8_0 => 8,
        GgmlDType::Q2K => 10,
        GgmlDType::Q3K => 11,
        GgmlDType::Q4K => 12,
        GgmlDType::Q5K => 13,
        GgmlDType::Q6K => 14,
        GgmlDType::BF16 => 30,
        other => panic!("{other:?} is not for weights"),
    }
}

/// Metadata and tokenizer of `granite-3-tiny`, as llama.cpp's converter writes them.
pub fn metadata() -> Gguf {
    let mut gguf = Gguf::new();
    gguf.set_text("general.architecture", "granite");
    gguf.set_text("general.name", "Granite 3 tiny");
    for (key, value) in [
        ("block_count", LAYERS as u32),
        ("context_length", 512),
        ("embedding_length", 256),
        ("feed_forward_length", 512),
        ("attention.head_count", HEADS as u32),
        ("attention.head_count_kv", KV_HEADS as u32),
        ("rope.dimension_count", HEAD_DIM as u32),
        ("vocab_size", 320),
    ] {
        gguf.set_u32(&format!("granite.{key}"), value);
    }
    for (key, value) in [
        ("attention.layer_norm_rms_epsilon", 1e-5),
        ("attention.scale", 0.03125),
        ("embedding_scale", 12.0),
        ("residual_scale", 0.22),
        ("logit_scale", 8.0),
        ("rope.freq_base", 1e7),
    ] {
        gguf.set_f32(&format!("granite.{key}"), value);
    }
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("granite-3-tiny/tokenizer.json")).unwrap())
            .unwrap();
    let mut tokens = vec![String::new(); 320];
    let mut types = vec![1i32; 320];
    for (token, id) in json["model"]["vocab"].as_object().unwrap() {
        tokens[id.as_u64().unwrap() as usize] = token.clone();
    }
    for added in json["added_tokens"].as_array().unwrap() {
        let id = added["id"].as_u64().unwrap() as usize;
        tokens[id] = added["content"].as_str().unwrap().into();
        types[id] = 3;
    }
    let merges: Vec<String> = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|merge| {
            format!(
                "{} {}",
                merge[0].as_str().unwrap(),
                merge[1].as_str().unwrap()
            )
        })
        .collect();
    let types: Vec<Vec<u8>> = types
        .iter()
        .map(|kind| kind.to_le_bytes().to_vec())
        .collect();
    gguf.set_text("tokenizer.ggml.model", "gpt2");
    gguf.set_text("tokenizer.ggml.pre", "refact");
    gguf.set_texts(
        "tokenizer.ggml.tokens",
        &tokens.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    gguf.set("tokenizer.ggml.token_type", ARRAY, array(I32, &types));
    gguf.set_texts(
        "tokenizer.ggml.merges",
        &merges.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    gguf.set_u32("tokenizer.ggml.bos_token_id", 0);
    gguf.set_u32("tokenizer.ggml.eos_token_id", 0);
    gguf.set_text("tokenizer.chat_template", "{{ messages }}");
    gguf
}

/// The whole of `granite-3-tiny` with its matrices stored as `dtype`.
pub fn granite(dtype: GgmlDType) -> Gguf {
    let source = granite_3_tiny();
    let mut gguf = metadata();
    for (hf, name, heads) in names() {
        let mut values = tensor(&source, &hf);
        if let Some(heads) = heads {
            values = permute(&values, heads);
        }
        let dtype = if values.rank() == 1 {
            GgmlDType::F32
        } else {
            dtype
        };
        let stored = QTensor::quantize(&values, dtype).unwrap();
        let dimensions: Vec<u64> = values.dims().iter().rev().map(|n| *n as u64).collect();
        gguf.add_tensor(
            &name,
            &dimensions,
            ggml_number(dtype),
            stored.data().unwrap().into_owned(),
        );
    }
    gguf
}
