//! What the layers of each architecture are made of, in the words of `config.json`.

use serde_json::{Value, json};

use super::keys::Keys;
use crate::error::{Error, Result};
use crate::sources::forms::BAMBA;

const HEADS: &str = "attention.head_count";
const KV_HEADS: &str = "attention.head_count_kv";
const EXPERTS: &str = "expert_count";
/// Converters of Granite use this flag to say whether there are rotary positions at all. llama.cpp reads an absent one
/// as true.
const ROTARY: &str = "rope.scaling.finetuned";
const LOGIT_SCALE: &str = "logit_scale";

/// The longest context of a hybrid. Converters write 2²⁰ for every model without positions, whatever it was trained on;
/// no published one was trained on more than this.
const HYBRID_CONTEXT: usize = 131_072;

/// The fields of an architecture's class, and those that describe its layers.
pub fn describe(keys: &Keys<'_>, layers: usize, head_dim: usize) -> Result<Value> {
    let (kv_heads, has_attention) = attention(keys, layers)?;
    let mut config = json!({ "num_key_value_heads": kv_heads });
    extend(&mut config, multipliers(keys, head_dim)?);
    let of_class = match keys.architecture {
        "granitehybrid" => hybrid(keys, &has_attention)?,
        "granitemoe" => mixture(keys)?,
        "granite" => class("GraniteForCausalLM", "granite"),
        _ => class("LlamaForCausalLM", "llama"),
    };
    extend(&mut config, of_class);
    Ok(config)
}

/// Adds the fields of one object to another, in place of those that it has.
pub fn extend(config: &mut Value, fields: Value) {
    if let (Value::Object(config), Value::Object(fields)) = (config, fields) {
        config.extend(fields);
    }
}

fn class(architecture: &str, model_type: &str) -> Value {
    json!({ "architectures": [architecture], "model_type": model_type })
}

/// The number of key and value heads, and whether each layer has attention: in a hybrid, layers with no such heads are
/// Mamba-2 layers.
fn attention(keys: &Keys<'_>, layers: usize) -> Result<(usize, Vec<bool>)> {
    let heads = keys.size(HEADS)?;
    let by_layer = keys.header.count_by_layer(&keys.key(KV_HEADS), layers)?;
    let by_layer = by_layer.unwrap_or_else(|| vec![heads; layers]);
    let has_attention: Vec<bool> = by_layer.iter().map(|kv_heads| *kv_heads > 0).collect();
    let mut of_attention = by_layer.into_iter().filter(|kv_heads| *kv_heads > 0);
    let Some(kv_heads) = of_attention.next() else {
        return Err(keys.bad(KV_HEADS, "is zero in every layer, so none has attention"));
    };
    let may_be_zero = keys.architecture == "granitehybrid";
    if !may_be_zero && has_attention.contains(&false) || of_attention.any(|other| other != kv_heads)
    {
        let problem = match may_be_zero {
            true => "must be the same in every layer with attention",
            false => "must be the same in every layer",
        };
        return Err(keys.bad(KV_HEADS, problem));
    }
    if heads % kv_heads != 0 {
        let problem = format!("{kv_heads} does not divide {HEADS} ({heads})");
        return Err(keys.bad(KV_HEADS, problem));
    }
    Ok((kv_heads, has_attention))
}

/// Granite's multipliers, which are neutral in a Llama.
fn multipliers(keys: &Keys<'_>, head_dim: usize) -> Result<Value> {
    let is_granite = keys.architecture != "llama";
    // llama.cpp reads an absent scale and a zero alike: as no scaling.
    let scale = |name: &str, neutral: f64| {
        let value = match is_granite {
            true => keys.number(name)?.filter(|value| *value != 0.0),
            false => None,
        };
        Ok::<_, Error>(value.unwrap_or(neutral))
    };
    // The divisor of logits has no such default, except in hybrids.
    let divisor = match keys.architecture {
        "granite" | "granitemoe" => keys.required_number(LOGIT_SCALE)?,
        _ => scale(LOGIT_SCALE, 1.0)?,
    };
    Ok(json!({
        "attention_multiplier": scale("attention.scale", 1.0 / (head_dim as f64).sqrt())?,
        "embedding_multiplier": scale("embedding_scale", 1.0)?,
        "logits_scaling": divisor,
        "residual_multiplier": scale("residual_scale", 1.0)?,
    }))
}

/// A model with Mamba-2 layers, with or without experts. Those of Bamba have the same architecture in such files.
fn hybrid(keys: &Keys<'_>, has_attention: &[bool]) -> Result<Value> {
    let has_mamba = has_attention.contains(&false);
    let is_rotary = keys.header.flag(&keys.key(ROTARY))?.unwrap_or(true);
    let bamba = |key: String| Err(Error::bad_model(keys.file, key, format!("Bamba {BAMBA}")));
    if has_mamba && is_rotary {
        return bamba(keys.key(ROTARY));
    }
    let mut has_scale = false;
    for name in [
        LOGIT_SCALE,
        "attention.scale",
        "embedding_scale",
        "residual_scale",
    ] {
        has_scale |= keys.number(name)?.is_some();
    }
    if !has_scale {
        return bamba("general.architecture".into());
    }
    let kind = |attention: &bool| if *attention { "attention" } else { "mamba" };
    let kinds: Vec<&str> = has_attention.iter().map(kind).collect();
    let mut config = class("GraniteMoeHybridForCausalLM", "granitemoehybrid");
    extend(
        &mut config,
        json!({
            "layer_types": kinds,
            "max_position_embeddings": keys.size("context_length")?.min(HYBRID_CONTEXT),
            "position_embedding_type": if is_rotary { "rope" } else { "nope" },
        }),
    );
    if has_mamba {
        extend(&mut config, mamba(keys)?);
    }
    let experts = match keys.count_or_zero(EXPERTS)? {
        // The only feed-forward layer of each layer is the shared one, whose width is the general one.
        0 => json!({
            "num_local_experts": 0,
            "shared_intermediate_size": keys.size("feed_forward_length")?,
        }),
        count => experts(keys, count)?,
    };
    extend(&mut config, experts);
    Ok(config)
}

fn mamba(keys: &Keys<'_>) -> Result<Value> {
    // The key that names the rank of the time steps of the first Mamba has the number of heads of a Mamba-2.
    const MAMBA_HEADS: &str = "ssm.time_step_rank";
    const INNER: &str = "ssm.inner_size";
    Ok(json!({
        "mamba_d_conv": keys.size("ssm.conv_kernel")?,
        "mamba_d_head": keys.quotient(INNER, MAMBA_HEADS)?,
        "mamba_d_state": keys.size("ssm.state_size")?,
        "mamba_expand": keys.quotient(INNER, "embedding_length")?,
        "mamba_n_groups": keys.size("ssm.group_count")?,
        "mamba_n_heads": keys.size(MAMBA_HEADS)?,
    }))
}

/// A mixture of experts with attention in every layer.
fn mixture(keys: &Keys<'_>) -> Result<Value> {
    let experts = experts(keys, keys.size(EXPERTS)?)?;
    let mut config = match &experts["shared_intermediate_size"] {
        shared if shared == 0 => class("GraniteMoeForCausalLM", "granitemoe"),
        _ => class("GraniteMoeSharedForCausalLM", "granitemoeshared"),
    };
    extend(&mut config, experts);
    Ok(config)
}

/// The experts of each layer, and the width of the layer that all tokens share; 0 if there is none.
fn experts(keys: &Keys<'_>, count: usize) -> Result<Value> {
    const TAKEN: &str = "expert_used_count";
    let taken = keys.size(TAKEN)?;
    if taken > count {
        let problem = format!("{taken} is more than {EXPERTS} ({count})");
        return Err(keys.bad(TAKEN, problem));
    }
    Ok(json!({
        "num_experts_per_tok": taken,
        "num_local_experts": count,
        "shared_intermediate_size": keys.count_or_zero("expert_shared_feed_forward_length")?,
    }))
}
