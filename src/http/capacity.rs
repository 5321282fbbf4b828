//! `GET /v1/capacity`: how much more fits now, and what int8 makes possible in this memory that floats would not.

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::app::{App, Plan, ServedModel};
use super::error_body::ApiError;
use crate::model::PAGE_TOKENS;

/// A prompt and an answer of ordinary length: a page or two of text and a few paragraphs.
const TYPICAL_TOKENS: usize = 2048;

/// The answer.
#[derive(Debug, PartialEq, Serialize)]
pub struct Capacity<'a> {
    object: &'static str,
    model: &'a str,
    /// Sequences in the batch, and those that wait for a place in it.
    running: u64,
    waiting: u64,
    max_batch: u64,
    /// How many more sequences fit now, for the configured context and for a typical length.
    now: Vec<Room>,
    /// The memory that this process may use; `null` if the system does not say.
    memory_limit_bytes: Option<u64>,
    memory_limit_source: Option<&'static str>,
    /// What fits that memory in int8, and would in floats; empty if the limit is not known.
    formats: Vec<Format>,
}

/// How many more sequences of one length fit now.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Room {
    tokens: u64,
    more: u64,
    /// What there is least of.
    limited_by: &'static str,
}

/// What fits with weights, keys and values in one format.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Format {
    dtype: &'static str,
    weight_bytes: u64,
    /// Of keys and values.
    bytes_per_token: u64,
    /// Processes like this one, with as many tokens of KV cache each.
    replicas: u64,
    /// Sequences in one process that takes all of the memory.
    sequences: Vec<Fitting>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Fitting {
    tokens: u64,
    count: u64,
}

/// What the server uses at the moment.
struct Usage {
    running: u64,
    waiting: u64,
    /// KV pages of running sequences. Cached pages of others are as good as free.
    used_pages: u64,
    pages: u64,
}

/// `GET /v1/capacity`.
pub async fn show(State(app): State<App>) -> Result<Json<serde_json::Value>, ApiError> {
    let model = app.model()?;
    let metrics = app.metrics();
    let gauge = |value: i64| u64::try_from(value).unwrap_or(0);
    let page = model.facts.plan.kv_page.max(1);
    let pages = |state| gauge(metrics.kv_cache_bytes.with_label_values(&[state]).get()) / page;
    let usage = Usage {
        running: gauge(metrics.requests_running.get()),
        waiting: gauge(metrics.requests_waiting.get()),
        used_pages: pages("used"),
        pages: pages("reserved"),
    };
    Ok(Json(serde_json::json!(of(model, &usage))))
}

fn of<'a>(model: &'a ServedModel, usage: &Usage) -> Capacity<'a> {
    let limits = model.engine.limits();
    let (facts, plan) = (&model.facts, &model.facts.plan);
    let context = limits.context_length as u64;
    let mut lengths = vec![context, context.min(TYPICAL_TOKENS as u64)];
    lengths.dedup();
    let max_batch = limits.max_batch as u64;
    let limit = plan.limit.as_ref();
    let weights = [("int8", facts.weight_bytes, plan.kv_page)].into_iter();
    let floats = [("bf16", 2), ("f32", 4)].into_iter();
    let weights = weights.chain(floats.map(|(dtype, width)| {
        let pages = width * plan.kv_page_values;
        (dtype, width * facts.parameters, pages)
    }));
    let formats = limit.map(|limit| {
        let format = |(dtype, weights, page)| {
            plan.format(limit.bytes, dtype, weights, page, usage.pages, &lengths)
        };
        weights.map(format).collect()
    });
    Capacity {
        object: "capacity",
        model: &model.name,
        running: usage.running,
        waiting: usage.waiting,
        max_batch,
        now: lengths
            .iter()
            .map(|&tokens| usage.room(tokens, max_batch))
            .collect(),
        memory_limit_bytes: limit.map(|limit| limit.bytes),
        memory_limit_source: limit.map(|limit| limit.source),
        formats: formats.unwrap_or_default(),
    }
}

const fn pages_of(tokens: u64) -> u64 {
    tokens.div_ceil(PAGE_TOKENS as u64)
}

impl Usage {
    fn room(&self, tokens: u64, max_batch: u64) -> Room {
        let in_cache = self.pages.saturating_sub(self.used_pages) / pages_of(tokens).max(1);
        let in_batch = max_batch.saturating_sub(self.running);
        Room {
            tokens,
            more: in_cache.min(in_batch),
            limited_by: if in_cache < in_batch {
                "kv_cache"
            } else {
                "batch"
            },
        }
    }
}

impl Plan {
    /// What fits `limit` bytes. States are floats in every format.
    fn format(
        &self,
        limit: u64,
        dtype: &'static str,
        weight_bytes: u64,
        page: u64,
        pages: u64,
        lengths: &[u64],
    ) -> Format {
        let fixed = weight_bytes.saturating_add(self.beside);
        let process = fixed.saturating_add(pages.saturating_mul(page));
        let left = limit.saturating_sub(fixed);
        let fitting = |&tokens: &u64| {
            let sequence = pages_of(tokens)
                .saturating_mul(page)
                .saturating_add(self.state);
            Fitting {
                tokens,
                count: left / sequence.max(1),
            }
        };
        Format {
            dtype,
            weight_bytes,
            bytes_per_token: page / PAGE_TOKENS as u64,
            replicas: limit / process.max(1),
            sequences: lengths.iter().map(fitting).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 40 layers of 8 KV heads of 64 values.
    const GRANITE_2B: Plan = Plan {
        limit: None,
        beside: 752 << 20,
        kv_page: 40 * 8 * 2 * 64 * (64 + 4),
        kv_page_values: 40 * 8 * 2 * 64 * 64,
        state: 0,
    };

    #[test]
    fn what_there_is_least_of_limits() {
        let usage = Usage {
            running: 13,
            waiting: 0,
            used_pages: 400,
            pages: 1024,
        };
        let room = |tokens, more, limited_by| Room {
            tokens,
            more,
            limited_by,
        };
        // 624 pages are free: 19 times 32, but only three places; and none of 2048.
        assert_eq!(usage.room(2048, 16), room(2048, 3, "batch"));
        assert_eq!(usage.room(20_000, 16), room(20_000, 1, "kv_cache"));
        assert_eq!(usage.room(131_072, 16), room(131_072, 0, "kv_cache"));
        assert_eq!(usage.room(2048, 4).more, 0);
    }

    #[test]
    fn floats_leave_less_room_or_none() {
        let parameters = 2_533_539_840_u64;
        let of =
            |dtype, weights, page| GRANITE_2B.format(8 << 30, dtype, weights, page, 1024, &[2048]);
        let int8 = of("int8", 2_542_000_000, GRANITE_2B.kv_page);
        let bf16 = of("bf16", 2 * parameters, 2 * GRANITE_2B.kv_page_values);
        let f32 = of("f32", 4 * parameters, 4 * GRANITE_2B.kv_page_values);
        // (8 GiB − 2.54 GB − 752 MiB) / (32 pages of 2.66 MiB), by hand.
        assert_eq!(int8.sequences[0].count, 59);
        assert_eq!(bf16.sequences[0].count, 16);
        assert_eq!(f32.sequences[0].count, 0, "the weights alone do not fit");
        assert_eq!((int8.replicas, bf16.replicas, f32.replicas), (1, 0, 0));
        assert_eq!(
            (int8.bytes_per_token, bf16.bytes_per_token),
            (43_520, 81_920)
        );
        // A state comes on top in every format.
        let hybrid = Plan {
            state: 87 << 20,
            ..GRANITE_2B
        };
        let page = GRANITE_2B.kv_page;
        let hybrid = hybrid.format(8 << 30, "int8", 2_542_000_000, page, 0, &[2048]);
        assert!(hybrid.sequences[0].count < 31, "{hybrid:?}");
    }
}
