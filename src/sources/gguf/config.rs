//! GGUF metadata, translated to the keys of Hugging Face's `config.json`.

use std::path::Path;

use serde_json::{Value, json};

use super::header::Header;
use crate::error::{Error, Result};

/// The rotary base that llama.cpp uses when a file does not specify one.
const DEFAULT_ROPE_THETA: f64 = 10000.0;

/// Translates the metadata. Architectures other than `granite` and `llama`, experts and scaled rotary positions are refused.
///
/// # Errors
/// [`Error::BadModel`] naming the metadata key.
pub fn translate(file: &Path, header: &Header<'_>) -> Result<Value> {
    let architecture = architecture(file, header)?;
    let key = |name: &str| format!("{architecture}.{name}");
    refuse_unsupported(file, header, architecture)?;

    let count = |name: &str| {
        let key = key(name);
        header
            .count_in_every_layer(&key)?
            .ok_or_else(|| header.missing(&key))
    };
    let number = |name: &str| header.number(&key(name));
    let hidden_size = count("embedding_length")?;
    let heads = count("attention.head_count")?;
    if heads == 0 {
        return Err(Error::bad_model(
            file,
            key("attention.head_count"),
            "is zero",
        ));
    }
    let kv_heads = header
        .count_in_every_layer(&key("attention.head_count_kv"))?
        .unwrap_or(heads);
    let head_dim = head_dim(file, header, architecture, hidden_size / heads)?;
    let eps = "attention.layer_norm_rms_epsilon";

    let mut config = json!({
        "_name_or_path": header.text("general.name")?,
        "bos_token_id": header.count("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": eos_token_ids(header)?,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "intermediate_size": count("feed_forward_length")?,
        "max_position_embeddings": count("context_length")?,
        "num_attention_heads": heads,
        "num_hidden_layers": count("block_count")?,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": number(eps)?.ok_or_else(|| header.missing(&key(eps)))?,
        "rope_theta": number("rope.freq_base")?.unwrap_or(DEFAULT_ROPE_THETA),
        "tie_word_embeddings": !header.tensors.iter().any(|t| t.name == "output.weight"),
        "vocab_size": vocab_size(file, header, &key("vocab_size"))?,
    });
    let neutral_attention = 1.0 / (head_dim as f64).sqrt();
    let family = if architecture == "granite" {
        // llama.cpp reads an absent scale and a zero alike: as no scaling. The last one has no such default.
        let scale = |name: &str, neutral: f64| {
            let value = number(name)?.filter(|value| *value != 0.0);
            Ok::<_, Error>(value.unwrap_or(neutral))
        };
        let divisor = number("logit_scale")?.ok_or_else(|| header.missing(&key("logit_scale")))?;
        json!({
            "architectures": ["GraniteForCausalLM"],
            "model_type": "granite",
            "attention_multiplier": scale("attention.scale", neutral_attention)?,
            "embedding_multiplier": scale("embedding_scale", 1.0)?,
            "logits_scaling": divisor,
            "residual_multiplier": scale("residual_scale", 1.0)?,
        })
    } else {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_multiplier": neutral_attention,
            "embedding_multiplier": 1.0,
            "logits_scaling": 1.0,
            "residual_multiplier": 1.0,
        })
    };
    if let (Value::Object(config), Value::Object(family)) = (&mut config, family) {
        config.extend(family);
    }
    Ok(config)
}

fn architecture<'a>(file: &Path, header: &Header<'a>) -> Result<&'a str> {
    let key = "general.architecture";
    match header.text(key)?.ok_or_else(|| header.missing(key))? {
        known @ ("granite" | "llama") => Ok(known),
        other => {
            let problem = match other {
                "granitehybrid" => format!(
                    "{other} is read from safetensors alone; take the repository with the model's safetensors"
                ),
                "granitemoe" => format!(
                    "{other} is read from safetensors alone; take the repository with the model's safetensors"
                ),
                _ => format!("{other:?} is not supported, only granite and llama"),
            };
            Err(Error::bad_model(file, key, problem))
        }
    }
}

/// Refuses what the forward pass does not support, so that no answer is silently wrong.
fn refuse_unsupported(file: &Path, header: &Header<'_>, architecture: &str) -> Result<()> {
    let refuse = |key: &str, problem: String| Err(Error::bad_model(file, key, problem));
    let key = |name: &str| format!("{architecture}.{name}");

    let experts = key("expert_count");
    match header.count(&experts)? {
        None | Some(0) => {}
        Some(n) => {
            return refuse(
                &experts,
                format!(
                    "{n} experts are read from safetensors alone; take the repository with the model's safetensors"
                ),
            );
        }
    }
    let scaling = key("rope.scaling.type");
    let kind = header.text(&scaling)?.unwrap_or("none");
    let factor_keys = [key("rope.scaling.factor"), key("rope.scale_linear")];
    for factor_key in &factor_keys {
        let factor = header.number(factor_key)?.unwrap_or(1.0);
        if kind != "none" && factor != 1.0 {
            return refuse(
                factor_key,
                format!("{kind} rotary scaling by {factor} is not supported"),
            );
        }
        // The older key implies linear scaling without naming a type.
        if factor_key.ends_with("scale_linear") && factor != 1.0 {
            return refuse(
                factor_key,
                format!("rotary scaling by {factor} is not supported"),
            );
        }
    }
    if !matches!(kind, "none" | "linear") {
        return refuse(&scaling, format!("{kind} rotary scaling is not supported"));
    }
    // Granite converters use this flag to say whether there are rotary positions at all.
    let rotary = key("rope.scaling.finetuned");
    if architecture == "granite" && header.flag(&rotary)? == Some(false) {
        return refuse(
            &rotary,
            "a Granite without rotary positions is not supported".into(),
        );
    }
    Ok(())
}

/// The width of a head; the rotary positions must cover all of it.
fn head_dim(
    file: &Path,
    header: &Header<'_>,
    architecture: &str,
    even_share: usize,
) -> Result<usize> {
    let rotary_key = format!("{architecture}.rope.dimension_count");
    let rotary = header.count_in_every_layer(&rotary_key)?;
    let mut head_dim = rotary.unwrap_or(even_share);
    for name in ["attention.key_length", "attention.value_length"] {
        let key = format!("{architecture}.{name}");
        let Some(length) = header.count_in_every_layer(&key)? else {
            continue;
        };
        if rotary.is_none() {
            head_dim = length;
        }
        if length != head_dim {
            let problem = format!("{length} differs from the rotary width {head_dim}");
            return Err(Error::bad_model(file, key, problem));
        }
    }
    // Restoring the row order pairs the halves of a head, and a rotation turns pairs.
    if head_dim == 0 || head_dim % 2 != 0 {
        let problem = format!("a head of {head_dim} values cannot be rotated in pairs");
        return Err(Error::bad_model(file, rotary_key, problem));
    }
    Ok(head_dim)
}

/// The number of rows of the embedding. The metadata key is optional, but must agree.
fn vocab_size(file: &Path, header: &Header<'_>, key: &str) -> Result<usize> {
    let embedding = header
        .tensors
        .iter()
        .find(|t| t.name == "token_embd.weight");
    let Some(rows) = embedding.and_then(|tensor| tensor.shape.first().copied()) else {
        return Err(header.missing("token_embd.weight"));
    };
    match header.count(key)? {
        Some(stated) if stated != rows => {
            let problem = format!("{stated}, but token_embd.weight has {rows} rows");
            Err(Error::bad_model(file, key, problem))
        }
        _ => Ok(rows),
    }
}

/// End of text and, where a chat model has one, end of turn.
pub fn eos_token_ids(header: &Header<'_>) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        let id = header.count(key)?.map(|id| id as u32);
        ids.extend(id.filter(|id| !ids.contains(id)));
    }
    Ok(ids)
}
