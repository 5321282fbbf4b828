//! A hybrid or a mixture of experts as a GGUF file, written as llama.cpp's converter does.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use serde_json::Value;

use microgranite::sources::{self, Checkpoint, Reference};

use crate::gguf_granite::{ggml_number, metadata, permute, tensor};
use crate::gguf_writer::{ARRAY, BOOL, Gguf, U32, array};
use crate::{fixture, offline};

pub const HYBRID: &str = "granite-4-hybrid-tiny";
pub const HYBRID_WITH_EXPERTS: &str = "granite-4-hybrid-moe-tiny";
pub const MIXTURE: &str = "granite-3-moe-tiny";
pub const MIXTURE_WITH_SHARED_LAYER: &str = "granite-moe-shared-tiny";
pub const ALL: [&str; 4] = [
    HYBRID,
    HYBRID_WITH_EXPERTS,
    MIXTURE,
    MIXTURE_WITH_SHARED_LAYER,
];

pub fn safetensors(name: &str) -> Checkpoint {
    sources::open(&Reference::Folder(fixture(name)), &offline()).unwrap()
}

fn size(config: &Value, key: &str) -> u32 {
    config[key].as_u64().unwrap_or_default() as u32
}

/// The fixture's metadata, and its tokenizer: all fixtures have the same.
fn header(config: &Value) -> Gguf {
    let layers = size(config, "num_hidden_layers");
    let kinds = config["layer_types"].as_array();
    let architecture = match kinds {
        Some(_) => "granitehybrid",
        None => "granitemoe",
    };
    let mut gguf = metadata();
    gguf.entries
        .retain(|entry| !entry.0.starts_with("granite."));
    gguf.set_text("general.architecture", architecture);
    let key = |name: &str| format!("{architecture}.{name}");
    for (name, value) in [
        ("block_count", layers),
        ("embedding_length", size(config, "hidden_size")),
        ("feed_forward_length", size(config, "intermediate_size")),
        ("attention.head_count", size(config, "num_attention_heads")),
        ("rope.dimension_count", 32),
        ("vocab_size", 320),
    ] {
        gguf.set_u32(&key(name), value);
    }
    for (name, field) in [
        ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
        ("rope.freq_base", "rope_theta"),
    ] {
        gguf.set_f32(&key(name), config[field].as_f64().unwrap() as f32);
    }
    for (name, field) in [
        ("expert_count", "num_local_experts"),
        ("expert_used_count", "num_experts_per_tok"),
        (
            "expert_shared_feed_forward_length",
            "shared_intermediate_size",
        ),
    ] {
        if size(config, field) > 0 {
            gguf.set_u32(&key(name), size(config, field));
        }
    }
    let kv_heads = size(config, "num_key_value_heads");
    let Some(kinds) = kinds else {
        gguf.set_u32(&key("attention.head_count_kv"), kv_heads);
        gguf.set_u32(
            &key("context_length"),
            size(config, "max_position_embeddings"),
        );
        return gguf;
    };
    let by_layer = kinds.iter().map(|kind| match kind.as_str() {
        Some("attention") => kv_heads.to_le_bytes().to_vec(),
        _ => 0u32.to_le_bytes().to_vec(),
    });
    let by_layer = array(U32, &by_layer.collect::<Vec<_>>());
    gguf.set(&key("attention.head_count_kv"), ARRAY, by_layer);
    gguf.set(&key("rope.scaling.finetuned"), BOOL, vec![0]);
    let inner = size(config, "mamba_expand") * size(config, "hidden_size");
    for (name, value) in [
        ("context_length", 1 << 20),
        ("ssm.conv_kernel", size(config, "mamba_d_conv")),
        ("ssm.group_count", size(config, "mamba_n_groups")),
        ("ssm.inner_size", inner),
        ("ssm.state_size", size(config, "mamba_d_state")),
        ("ssm.time_step_rank", size(config, "mamba_n_heads")),
    ] {
        gguf.set_u32(&key(name), value);
    }
    gguf
}

/// The tensors of a GGUF file that hold one of a checkpoint; both names are without their layer.
fn converted(config: &Value, name: &str, values: &Tensor) -> Vec<(&'static str, Tensor)> {
    let halves = |dimension: usize| {
        let halves = values.chunk(2, dimension).unwrap();
        halves.into_iter().map(|half| half.contiguous().unwrap())
    };
    let column = |values: &Tensor| values.unsqueeze(1).unwrap();
    let heads = |key: &str| size(config, key) as usize;
    let has_experts = size(config, "num_local_experts") > 0;
    let one = |name, values: Tensor| vec![(name, values)];
    match name {
        "model.embed_tokens.weight" => one("token_embd.weight", values.clone()),
        "model.norm.weight" => one("output_norm.weight", values.clone()),
        "input_layernorm.weight" => one("attn_norm.weight", values.clone()),
        "post_attention_layernorm.weight" => one("ffn_norm.weight", values.clone()),
        "self_attn.q_proj.weight" => one(
            "attn_q.weight",
            permute(values, heads("num_attention_heads")),
        ),
        "self_attn.k_proj.weight" => one(
            "attn_k.weight",
            permute(values, heads("num_key_value_heads")),
        ),
        "self_attn.v_proj.weight" => one("attn_v.weight", values.clone()),
        "self_attn.o_proj.weight" => one("attn_output.weight", values.clone()),
        "mamba.in_proj.weight" => one("ssm_in.weight", values.clone()),
        "mamba.conv1d.weight" => one("ssm_conv1d.weight", values.squeeze(1).unwrap()),
        "mamba.conv1d.bias" => one("ssm_conv1d.bias", values.clone()),
        "mamba.dt_bias" => one("ssm_dt.bias", values.clone()),
        "mamba.A_log" => one("ssm_a", column(&rates(values))),
        "mamba.D" => one("ssm_d", column(values)),
        "mamba.norm.weight" => one("ssm_norm.weight", values.unsqueeze(0).unwrap()),
        "mamba.out_proj.weight" => one("ssm_out.weight", values.clone()),
        "block_sparse_moe.router.layer.weight" => one("ffn_gate_inp.weight", values.clone()),
        "block_sparse_moe.output_linear.weight" => one("ffn_down_exps.weight", values.clone()),
        "block_sparse_moe.input_linear.weight" => ["ffn_gate_exps.weight", "ffn_up_exps.weight"]
            .into_iter()
            .zip(halves(1))
            .collect(),
        "shared_mlp.input_linear.weight" => match has_experts {
            true => ["ffn_gate_shexp.weight", "ffn_up_shexp.weight"],
            false => ["ffn_gate.weight", "ffn_up.weight"],
        }
        .into_iter()
        .zip(halves(0))
        .collect(),
        "shared_mlp.output_linear.weight" => match has_experts {
            true => one("ffn_down_shexp.weight", values.clone()),
            false => one("ffn_down.weight", values.clone()),
        },
        other => panic!("{other} has no place in a GGUF file"),
    }
}

/// The rates of decay, of which a checkpoint has the logarithms.
pub fn rates(logarithms: &Tensor) -> Tensor {
    let logarithms: Vec<f32> = logarithms.to_vec1().unwrap();
    let rates: Vec<f32> = logarithms.iter().map(|value| -value.exp()).collect();
    Tensor::new(rates, &Device::Cpu).unwrap()
}

/// The whole of a fixture. `dtype` chooses how a matrix is stored, by its name without the layer.
pub fn gguf(name: &str, dtype: impl Fn(&str) -> GgmlDType) -> Gguf {
    let source = safetensors(name);
    let mut gguf = header(&source.config);
    for name in source.tensors().unwrap().names() {
        let values = tensor(&source, &name);
        let (prefix, part) = match name.strip_prefix("model.layers.") {
            Some(rest) => {
                let (layer, part) = rest.split_once('.').unwrap();
                (format!("blk.{layer}."), part)
            }
            None => (String::new(), name.as_str()),
        };
        for (part, values) in converted(&source.config, part, &values) {
            let is_float = values.rank() < 2
                || !part.ends_with(".weight")
                || part.ends_with("_norm.weight")
                || matches!(part, "ffn_gate_inp.weight" | "ssm_conv1d.weight");
            let dtype = if is_float {
                GgmlDType::F32
            } else {
                dtype(part)
            };
            // A half of a tensor shares its storage, all of which candle would quantize.
            let own = values.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let values = Tensor::from_vec(own, values.dims(), &Device::Cpu).unwrap();
            let stored = QTensor::quantize(&values, dtype).unwrap();
            let dimensions: Vec<u64> = values.dims().iter().rev().map(|n| *n as u64).collect();
            gguf.add_tensor(
                &format!("{prefix}{part}"),
                &dimensions,
                ggml_number(dtype),
                stored.data().unwrap().into_owned(),
            );
        }
    }
    gguf
}
