//! The report as a table for people.

use std::fmt;

use super::{Made, Report, Verified};
use crate::cli::figures::significant;
use crate::config::ByteSize;
use crate::model::packed::{CalibrationRecord, EvaluationRecord};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            config,
            bytes,
            tokenizer,
            ..
        } = self;
        let mut row = |name: &str, value: String| writeln!(f, "{name:<14}{value}");
        row("model", self.name.clone())?;
        row("architecture", self.architecture.clone())?;
        let layers = match &config.mamba {
            Some(_) => format!(
                "{}, {} with attention and the others with Mamba-2",
                config.num_hidden_layers, config.attention_layers
            ),
            None => config.num_hidden_layers.to_string(),
        };
        row("layers", layers)?;
        row("hidden", config.hidden_size.to_string())?;
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        row(
            "heads",
            format!(
                "{heads} for queries, {kv_heads} for keys and values, {} wide",
                config.head_dim
            ),
        )?;
        if let Some(mamba) = &config.mamba {
            let (heads, width) = (mamba.mamba_n_heads, mamba.mamba_d_head);
            let (state, bytes) = (
                mamba.mamba_d_state,
                ByteSize(mamba.state_bytes_per_sequence),
            );
            row(
                "mamba",
                format!(
                    "{heads} heads, {width} wide, {state} values of state for each channel: {bytes} per sequence"
                ),
            )?;
        }
        if let Some(experts) = &config.experts {
            let (count, taken) = (experts.num_local_experts, experts.num_experts_per_tok);
            let width = experts.expert_intermediate_size;
            row(
                "experts",
                format!("{count} in each layer, {width} wide; a token takes {taken}"),
            )?;
        }
        if config.intermediate_size > 0 {
            row("feed-forward", config.intermediate_size.to_string())?;
        }
        row("vocabulary", config.vocab_size.to_string())?;
        row(
            "context",
            format!(
                "{} tokens, {}",
                config.max_position_embeddings,
                match config.rope_theta {
                    Some(theta) => format!("rope theta {theta}"),
                    None => "no positional embedding".into(),
                }
            ),
        )?;
        row(
            "multipliers",
            format!(
                "embedding {}, attention {}, residual {}, logits 1/{}",
                config.embedding_multiplier,
                config.attention_multiplier,
                config.residual_multiplier,
                config.logits_scaling
            ),
        )?;
        let head = if config.tie_word_embeddings {
            "the embedding"
        } else {
            "a matrix of its own"
        };
        row("head", head.into())?;
        row(
            "parameters",
            format!("{:.1} million", self.parameters as f64 / 1e6),
        )?;
        for (dtype, stored) in &self.tensors {
            let millions = stored.values as f64 / 1e6;
            row(
                &format!("as {dtype}"),
                format!("{} tensors, {millions:.1} million values", stored.tensors),
            )?;
        }
        if let Some(method) = self.quantized_by {
            row(
                "quantized by",
                format!("{method}; codes are kept, without rotation"),
            )?;
        }
        row("stored", megabytes(bytes.stored))?;
        let share = |of: u64| 100.0 * bytes.int8 as f64 / of.max(1) as f64;
        let (of_f32, of_bf16) = (share(bytes.f32), share(bytes.bf16));
        row(
            "at int8",
            format!(
                "{}, {of_f32:.1} % of f32, {of_bf16:.1} % of bf16",
                megabytes(bytes.int8)
            ),
        )?;
        if let Some(made) = &self.quantization {
            row("scheme", made.scheme.to_string())?;
            let Made {
                source,
                created_by,
                kept_codes,
                evaluations,
                ..
            } = made;
            row("rounding", made.rounding())?;
            if let Some(maker) = kept_codes {
                row("kept codes", format!("of {maker}, without rotation"))?;
            }
            row("made from", format!("{} by {created_by}", source.name))?;
            if let Some(EvaluationRecord {
                reference,
                text,
                int8,
                ..
            }) = evaluations.last()
            {
                let median = int8.kl_median.map_or(String::new(), |median| {
                    format!(" (median {})", significant(median, 3))
                });
                let change = 100.0 * (int8.perplexity / int8.perplexity_reference - 1.0);
                row(
                    "evaluated",
                    format!(
                        "mean KL {}{median} to {reference} in f32, same top token {:.1} %, perplexity {change:+.2} %",
                        significant(int8.kl_mean, 3),
                        100.0 * int8.same_top_token
                    ),
                )?;
                row("", format!("on {} tokens of {text}", int8.tokens))?;
            }
        }
        let ids: Vec<String> = tokenizer.eos_token_ids.iter().map(u32::to_string).collect();
        row(
            "tokenizer",
            format!(
                "{} tokens, {} special, end of text {}",
                tokenizer.tokens,
                tokenizer.special_tokens,
                ids.join(", ")
            ),
        )?;
        let template = if tokenizer.chat_template {
            "yes"
        } else {
            "none"
        };
        row("chat template", template.into())?;
        if let Some(Verified { bytes, checksums }) = self.verified {
            row("verified", format!("{bytes} bytes, {checksums} checksums"))?;
        }
        Ok(())
    }
}

impl Made {
    /// A short description of how the weights were rounded, and on which text.
    fn rounding(&self) -> String {
        let mut words = match self.rounding {
            "nearest" => "to the nearest".to_owned(),
            other => other.to_owned(),
        };
        if let Some(alpha) = self.smooth {
            words += &format!(", smoothed by {alpha}");
        }
        if let Some(CalibrationRecord { text, tokens, .. }) = &self.calibration {
            words += &format!(", on {tokens} tokens of {text}");
        }
        words
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
