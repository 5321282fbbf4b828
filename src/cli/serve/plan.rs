//! Decides, before loading, whether a model fits this machine: a process that would be killed later should not start.

use crate::config::ByteSize;
use crate::error::{Error, Result};
use crate::memory::Limit;
use crate::model::{Footprint, PAGE_TOKENS};

/// Memory besides weights and KV cache: tokenizer, activations of the largest step, code, and allocator overhead. Twice
/// the use with Granite 2B.
const MARGIN: u64 = 256 << 20;
/// Largest number of rows per step whose activations [`MARGIN`] covers: that of the default settings.
const ROWS_IN_MARGIN: usize = 128;
/// Context per batch slot that the default KV cache has room for: enough for prompts and answers in chat or retrieval,
/// and longer ones use what shorter ones leave.
const TOKENS_PER_PLACE: usize = 4096;

/// What clients can make the process hold: every connection its buffers, and all requests together their share.
#[derive(Debug, Clone, Copy)]
pub struct Clients {
    /// Connections at once.
    pub connections: usize,
    /// Bytes of each.
    pub connection_bytes: usize,
    /// Bytes of all bodies, and of what is made of them.
    pub request_bytes: usize,
    /// Bytes that it takes to read the longest body.
    pub reading_bytes: usize,
}

impl Clients {
    const fn connections(self) -> u64 {
        (self.connections as u64).saturating_mul(self.connection_bytes as u64)
    }
}

/// Bytes for the KV cache: as `asked`, or enough for `max_batch` sequences of ordinary length, though at most half of
/// what `limit` leaves.
///
/// # Errors
/// [`Error::Config`] with "needs X, limit Y" when weights, cache, clients and margin do not fit.
pub fn kv_bytes(
    asked: Option<ByteSize>,
    footprint: Footprint,
    context: usize,
    max_batch: usize,
    clients: Clients,
    limit: Option<Limit>,
) -> Result<u64> {
    let pages_per_place = context.min(TOKENS_PER_PLACE).div_ceil(PAGE_TOKENS);
    let pages = (max_batch as u64).saturating_mul(pages_per_place as u64);
    let wanted = pages.saturating_mul(footprint.kv_page);
    let (requests, reading) = (clients.request_bytes as u64, clients.reading_bytes as u64);
    let of_clients = clients.connections().saturating_add(requests);
    let of_clients = of_clients.saturating_add(reading);
    // A step has a row for every batch slot.
    let rows = max_batch.saturating_sub(ROWS_IN_MARGIN) as u64;
    let margin = MARGIN.saturating_add(rows.saturating_mul(footprint.step_row));
    let beside = footprint
        .weights
        .saturating_add(margin)
        .saturating_add(of_clients);
    if let Some(asked) = asked.filter(|asked| asked.0 < footprint.kv_page) {
        let page = ByteSize(footprint.kv_page);
        return Err(Error::Config(format!(
            "--kv-cache: {asked} is too small: one page takes {page}"
        )));
    }
    let kv = match (asked, &limit) {
        (Some(ByteSize(asked)), _) => asked,
        (None, Some(limit)) => {
            let half_of_rest = limit.bytes.saturating_sub(beside) / 2;
            // At least one page, so that the check below reports what is missing.
            wanted.min(half_of_rest).max(footprint.kv_page)
        }
        (None, None) => wanted,
    };
    match limit {
        Some(limit) if beside.saturating_add(kv) > limit.bytes => Err(Error::Config(format!(
            "not enough memory: needs {} ({} weights, {} KV cache, {} requests, {} to read one, {} for {} connections, {} beside), limit {} ({}); smaller --kv-cache, --max-body, --max-connections need less",
            ByteSize(beside.saturating_add(kv)),
            ByteSize(footprint.weights),
            ByteSize(kv),
            ByteSize(requests),
            ByteSize(reading),
            ByteSize(clients.connections()),
            clients.connections,
            ByteSize(margin),
            ByteSize(limit.bytes),
            limit.source,
        ))),
        _ => Ok(kv),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRANITE_2B: Footprint = Footprint {
        weights: 2_600_000_000,
        kv_page: 2_785_280,
        step_row: 4 * (2 * 49_159 + 8 * 2048 + 3 * 8192),
    };

    const CLIENTS: Clients = Clients {
        connections: 1024,
        connection_bytes: 112 << 10,
        request_bytes: 64 << 20,
        reading_bytes: 320 << 20,
    };
    /// All that is neither weights nor cache.
    const BESIDE: u64 = MARGIN + (112 << 20) + (64 << 20) + (320 << 20);

    fn plan(asked: Option<u64>, limit: u64) -> Result<u64> {
        let limit = Limit {
            bytes: limit,
            source: "cgroup v2",
        };
        let asked = asked.map(ByteSize);
        kv_bytes(asked, GRANITE_2B, 131_072, 16, CLIENTS, Some(limit))
    }

    #[test]
    fn with_plenty_of_memory_every_place_has_its_share() {
        assert_eq!(plan(None, 24 << 30).unwrap(), 16 * 64 * 2_785_280);
    }

    #[test]
    fn with_little_memory_half_of_the_rest_is_left_alone() {
        let limit = 4 << 30;
        assert_eq!(
            plan(None, limit).unwrap(),
            (limit - 2_600_000_000 - BESIDE) / 2
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_numbers() {
        let error = plan(None, 1 << 30).unwrap_err();
        assert_eq!(
            error.to_string(),
            "not enough memory: needs 3.16 GiB (2.42 GiB weights, 2.66 MiB KV cache, 64.0 MiB requests, 320 MiB to read one, 112 MiB for 1024 connections, 256 MiB beside), limit 1.00 GiB (cgroup v2); smaller --kv-cache, --max-body, --max-connections need less"
        );
        assert_eq!(error.exit_code(), 78);
        assert!(plan(Some(2 << 30), 4 << 30).is_err());
        assert!(plan(Some(u64::MAX), 4 << 30).is_err());
        assert_eq!(plan(Some(1 << 30), 5 << 30).unwrap(), 1 << 30);
    }

    #[test]
    fn a_cache_without_room_for_a_page_is_refused() {
        let error = plan(Some(10), 24 << 30).unwrap_err();
        let line = "--kv-cache: 10 B is too small: one page takes 2.66 MiB";
        assert_eq!(error.to_string(), line);
    }

    #[test]
    fn a_step_of_a_thousand_rows_is_in_the_plan() {
        let plan = |max_batch, limit| {
            let limit = Limit {
                bytes: limit,
                source: "cgroup v2",
            };
            let asked = Some(ByteSize(1 << 30));
            kv_bytes(asked, GRANITE_2B, 131_072, max_batch, CLIENTS, Some(limit))
        };
        let enough_for_128 = GRANITE_2B.weights + (1 << 30) + BESIDE;
        assert!(plan(128, enough_for_128).is_ok());
        assert!(plan(1024, enough_for_128).is_err());
        assert!(plan(1024, enough_for_128 + (1 << 30)).is_ok());
    }

    #[test]
    fn the_last_byte_that_clients_can_hold_is_in_the_plan() {
        let kv = 1 << 30;
        let limit = GRANITE_2B.weights + kv + BESIDE;
        assert_eq!(plan(Some(kv), limit).unwrap(), kv);
        assert!(plan(Some(kv), limit - 1).is_err());
    }
}
