//! GGUF metadata, translated to the keys of Hugging Face's `config.json`.

use std::path::Path;

use serde_json::{Value, json};

use super::header::Header;
use super::keys::Keys;
use super::layers;
use crate::error::{Error, Result};
use crate::sources::forms::OTHER_EXPERTS;

/// The rotary base that llama.cpp uses when a file does not specify one.
const DEFAULT_ROPE_THETA: f64 = 10000.0;

/// Translates the metadata. Other architectures, other mixtures of experts and scaled rotary positions are refused.
///
/// # Errors
/// [`Error::BadModel`] naming the metadata key.
pub fn translate(file: &Path, header: &Header<'_>) -> Result<Value> {
    let keys = Keys {
        file,
        header,
        architecture: architecture(file, header)?,
    };
    refuse_unsupported(&keys)?;

    let layers = layers(&keys)?;
    let head_dim = head_dim(&keys)?;
    let mut config = json!({
        "_name_or_path": header.text("general.name")?,
        "bos_token_id": header.count("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": eos_token_ids(header)?,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": keys.size("embedding_length")?,
        "intermediate_size": keys.size("feed_forward_length")?,
        "max_position_embeddings": keys.size("context_length")?,
        "num_attention_heads": keys.size("attention.head_count")?,
        "num_hidden_layers": layers,
        "rms_norm_eps": keys.required_number("attention.layer_norm_rms_epsilon")?,
        "rope_theta": keys.number("rope.freq_base")?.unwrap_or(DEFAULT_ROPE_THETA),
        "tie_word_embeddings": !header.tensors.iter().any(|t| t.name == "output.weight"),
        "vocab_size": vocab_size(file, header, &keys.key("vocab_size"))?,
    });
    layers::extend(&mut config, layers::describe(&keys, layers, head_dim)?);
    Ok(config)
}

fn architecture<'a>(file: &Path, header: &Header<'a>) -> Result<&'a str> {
    let key = "general.architecture";
    match header.text(key)?.ok_or_else(|| header.missing(key))? {
        known @ ("granite" | "granitehybrid" | "granitemoe" | "llama") => Ok(known),
        other => {
            let problem = format!(
                "{other:?} is not supported, only granite, granitehybrid, granitemoe and llama"
            );
            Err(Error::bad_model(file, key, problem))
        }
    }
}

/// The number of layers. What is allocated for each is bounded by the file, because each has tensors.
fn layers(keys: &Keys<'_>) -> Result<usize> {
    const NAME: &str = "block_count";
    let (layers, tensors) = (keys.size(NAME)?, keys.header.tensors.len());
    if layers > tensors {
        let problem = format!("{layers} layers, but there are only {tensors} tensors");
        return Err(keys.bad(NAME, problem));
    }
    Ok(layers)
}

/// Refuses what the forward pass does not support, so that no answer is silently wrong.
fn refuse_unsupported(keys: &Keys<'_>) -> Result<()> {
    let Keys {
        header,
        architecture,
        ..
    } = *keys;
    if matches!(architecture, "granite" | "llama") {
        match keys.count_or_zero("expert_count")? {
            0 => {}
            count => {
                let problem = format!("a {architecture} with {count} experts {OTHER_EXPERTS}");
                return Err(keys.bad("expert_count", problem));
            }
        }
    }
    let scaling = "rope.scaling.type";
    let kind = header.text(&keys.key(scaling))?.unwrap_or("none");
    for factor_key in ["rope.scaling.factor", "rope.scale_linear"] {
        let factor = keys.number(factor_key)?.unwrap_or(1.0);
        if kind != "none" && factor != 1.0 {
            let problem = format!("{kind} rotary scaling by {factor} is not supported");
            return Err(keys.bad(factor_key, problem));
        }
        // The older key implies linear scaling without naming a type.
        if factor_key == "rope.scale_linear" && factor != 1.0 {
            let problem = format!("rotary scaling by {factor} is not supported");
            return Err(keys.bad(factor_key, problem));
        }
    }
    if !matches!(kind, "none" | "linear") {
        let problem = format!("{kind} rotary scaling is not supported");
        return Err(keys.bad(scaling, problem));
    }
    // Converters of Granite use this flag to say whether there are rotary positions at all.
    let rotary = "rope.scaling.finetuned";
    let must_be_rotary = matches!(architecture, "granite" | "granitemoe");
    if must_be_rotary && header.flag(&keys.key(rotary))? == Some(false) {
        let problem = "a Granite without rotary positions or Mamba-2 layers is not supported";
        return Err(keys.bad(rotary, problem));
    }
    Ok(())
}

/// The width of a head; the rotary positions must cover all of it.
fn head_dim(keys: &Keys<'_>) -> Result<usize> {
    const ROTARY: &str = "rope.dimension_count";
    let stated = |name: &str| keys.header.count_in_every_layer(&keys.key(name));
    let lengths = ["attention.key_length", "attention.value_length"];
    let (rotary, [key, value]) = (stated(ROTARY)?, [stated(lengths[0])?, stated(lengths[1])?]);
    let head_dim = match rotary.or(key).or(value) {
        Some(width) => width,
        None => keys.quotient("embedding_length", "attention.head_count")?,
    };
    for (name, length) in lengths.into_iter().zip([key, value]) {
        if let Some(length) = length.filter(|length| *length != head_dim) {
            let problem = format!("{length} differs from the rotary width {head_dim}");
            return Err(keys.bad(name, problem));
        }
    }
    // Restoring the row order pairs the halves of a head, and a rotation turns pairs.
    if head_dim == 0 || head_dim % 2 != 0 {
        let problem = format!("a head of {head_dim} values cannot be rotated in pairs");
        return Err(keys.bad(ROTARY, problem));
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
