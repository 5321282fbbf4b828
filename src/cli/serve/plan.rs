//! Decides, before loading, whether a model fits this machine: a process that would be killed later should not start.

use crate::config::ByteSize;
use crate::error::{Error, Result};
use crate::http::limits::Limits;
use crate::http::{memory, server};
use crate::memory::Limit;
use crate::model::{Footprint, PAGE_TOKENS};

/// Memory besides weights and KV cache: tokenizer, activations of the largest step, code, and allocator overhead. Twice
/// the use with Granite 2B.
const MARGIN: u64 = 256 << 20;
/// Largest number of rows per step whose activations [`MARGIN`] covers: that of the default settings.
const ROWS_IN_MARGIN: usize = 128;
/// Context per batch slot that the default KV cache has room for: enough for prompts and answers in chat or retrieval,
/// and longer ones use what shorter ones leave.
pub const TOKENS_PER_PLACE: usize = 4096;

/// The memory for requests must hold at least this many of the largest bodies: parsing a body of plain text takes twice its
/// size, and one with many commas takes more.
pub const LEAST_BODIES: usize = 4;
/// Unless the operator gives other sizes, clients may hold one part in this many of the process's memory.
const SHARE_OF_CLIENTS: u64 = 8;
/// The smallest defaults. A body of 64 KiB still is a prompt of some 16,000 tokens.
const LEAST_DEFAULTS: ClientSizes = ClientSizes {
    body_bytes: 64 << 10,
    request_bytes: 16 << 20,
    connections: 64,
};

/// Limits on what clients may send and hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientSizes {
    /// Bytes of the largest body.
    pub body_bytes: usize,
    /// Bytes of all requests together: bodies, prompts and assembled answers.
    pub request_bytes: usize,
    /// Concurrent connections.
    pub connections: usize,
}

/// The sizes that the operator gave; the others have defaults.
#[derive(Debug, Clone, Copy, Default)]
pub struct GivenSizes {
    /// `--max-body`.
    pub body_bytes: Option<usize>,
    /// `--max-request-memory`.
    pub request_bytes: Option<usize>,
    /// `--max-connections`.
    pub connections: Option<usize>,
}

impl ClientSizes {
    /// The sizes in `given`, and defaults for the rest. The defaults are halved until clients cannot hold more than an eighth
    /// of `limit`, so that the server starts in a small container and serves ordinary requests there.
    pub fn new(given: GivenSizes, connection_bytes: usize, limit: Option<&Limit>) -> Self {
        let mut sizes = Self {
            body_bytes: Limits::default().body_bytes,
            request_bytes: Limits::default().memory_bytes,
            connections: server::Settings::default().max_connections,
        };
        loop {
            let complete = Self {
                body_bytes: given.body_bytes.unwrap_or(sizes.body_bytes),
                request_bytes: given.request_bytes.unwrap_or_else(|| {
                    let body_bytes = given.body_bytes.unwrap_or(sizes.body_bytes);
                    sizes
                        .request_bytes
                        .max(body_bytes.saturating_mul(LEAST_BODIES))
                }),
                connections: given.connections.unwrap_or(sizes.connections),
            };
            let share = limit.map_or(u64::MAX, |limit| limit.bytes / SHARE_OF_CLIENTS);
            if complete.clients(connection_bytes).bytes() <= share || sizes == LEAST_DEFAULTS {
                return complete;
            }
            sizes = Self {
                body_bytes: (sizes.body_bytes / 2).max(LEAST_DEFAULTS.body_bytes),
                request_bytes: (sizes.request_bytes / 2).max(LEAST_DEFAULTS.request_bytes),
                connections: (sizes.connections / 2).max(LEAST_DEFAULTS.connections),
            };
        }
    }

    /// The memory that clients can use under these limits, if each connection takes `connection_bytes`.
    pub const fn clients(self, connection_bytes: usize) -> Clients {
        Clients {
            connections: self.connections,
            connection_bytes,
            request_bytes: self.request_bytes,
            reading_bytes: memory::reading_bytes(self.body_bytes),
        }
    }
}

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

    const fn bytes(self) -> u64 {
        self.connections()
            .saturating_add(self.request_bytes as u64)
            .saturating_add(self.reading_bytes as u64)
    }
}

/// The sizes of caches that the operator has given.
#[derive(Debug, Clone, Copy, Default)]
pub struct GivenCaches {
    /// Bytes for keys and values.
    pub kv: Option<ByteSize>,
    /// Bytes for snapshots of states.
    pub states: Option<ByteSize>,
}

/// What sequences leave behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caches {
    /// Bytes for the KV cache.
    pub kv_bytes: u64,
    /// Snapshots of states; 0 if the model is not recurrent.
    pub snapshots: usize,
}

/// What runs at once.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    /// The longest sequence.
    pub context: usize,
    /// Sequences in a batch.
    pub max_batch: usize,
    /// Sequences that have a state at the same time.
    pub slots: usize,
}

/// What the process takes, part by part, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// The packed weights.
    pub weights: u64,
    /// The KV cache.
    pub kv: u64,
    /// States and snapshots of states.
    pub states: u64,
    /// All requests together.
    pub requests: u64,
    /// Reading the longest one.
    pub reading: u64,
    /// Buffers of connections.
    pub connections: u64,
    /// Everything else.
    pub rest: u64,
}

impl Parts {
    /// The parts of a process with these caches.
    pub fn new(footprint: Footprint, batch: Batch, clients: Clients, caches: Caches) -> Self {
        // A step has a row for every batch slot.
        let rows = batch.max_batch.saturating_sub(ROWS_IN_MARGIN) as u64;
        let states = (batch.slots as u64).saturating_add(caches.snapshots as u64);
        Self {
            weights: footprint.weights,
            kv: caches.kv_bytes,
            states: states.saturating_mul(footprint.state),
            requests: clients.request_bytes as u64,
            reading: clients.reading_bytes as u64,
            connections: clients.connections(),
            rest: MARGIN.saturating_add(rows.saturating_mul(footprint.step_row)),
        }
    }

    /// What is neither weights nor left behind by sequences.
    pub fn beside(&self) -> u64 {
        let without = Self {
            weights: 0,
            kv: 0,
            states: 0,
            ..*self
        };
        without.total()
    }

    /// Their sum.
    pub fn total(&self) -> u64 {
        let Self {
            weights,
            kv,
            states,
            requests,
            reading,
            connections,
            rest,
        } = *self;
        [weights, kv, states, requests, reading, connections, rest]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

/// The sizes of the caches: as `asked`, or by default a snapshot for each sequence of a batch, though at most a quarter
/// of what `limit` leaves beside everything else, and then pages for sequences of ordinary length, though at most half of
/// the rest.
///
/// # Errors
/// [`Error::Config`] with "needs X, limit Y" when weights, states, caches, clients and margin do not fit.
pub fn caches(
    asked: GivenCaches,
    footprint: Footprint,
    batch: Batch,
    clients: Clients,
    limit: Option<Limit>,
) -> Result<Caches> {
    let none = Caches {
        kv_bytes: 0,
        snapshots: 0,
    };
    let beside = Parts::new(footprint, batch, clients, none).total();
    let snapshots = snapshots(
        asked.states,
        footprint,
        batch.max_batch,
        beside,
        limit.as_ref(),
    );
    let beside = beside.saturating_add((snapshots as u64).saturating_mul(footprint.state));
    if let Some(asked) = asked.kv.filter(|asked| asked.0 < footprint.kv_page) {
        let page = ByteSize(footprint.kv_page);
        return Err(Error::Config(format!(
            "--kv-cache: {asked} is too small: one page takes {page}"
        )));
    }
    let kv_bytes = match (asked.kv, &limit) {
        (Some(ByteSize(asked)), _) => asked,
        (None, Some(limit)) => {
            let half_of_rest = limit.bytes.saturating_sub(beside) / 2;
            // At least one page, so that the check below reports what is missing.
            let wanted = usual_kv_bytes(footprint, batch);
            wanted.min(half_of_rest).max(footprint.kv_page)
        }
        (None, None) => usual_kv_bytes(footprint, batch),
    };
    let caches = Caches {
        kv_bytes,
        snapshots,
    };
    let parts = Parts::new(footprint, batch, clients, caches);
    match limit {
        Some(limit) if parts.total() > limit.bytes => Err(Error::Config(format!(
            "not enough memory: needs {} ({} weights, {} KV cache, {}{} requests, {} to read one, {} for {} connections, {} beside), limit {} ({}); smaller {}--kv-cache, --max-body, --max-connections need less",
            ByteSize(parts.total()),
            ByteSize(parts.weights),
            ByteSize(parts.kv),
            match parts.states {
                0 => String::new(),
                states => format!(
                    "{} for {} states and {snapshots} snapshots, ",
                    ByteSize(states),
                    batch.slots
                ),
            },
            ByteSize(parts.requests),
            ByteSize(parts.reading),
            ByteSize(parts.connections),
            clients.connections,
            ByteSize(parts.rest),
            ByteSize(limit.bytes),
            limit.source,
            if parts.states > 0 {
                "--max-batch, --state-cache, "
            } else {
                ""
            },
        ))),
        _ => Ok(caches),
    }
}

/// Bytes of a KV cache with room for [`TOKENS_PER_PLACE`] tokens in each place of the batch, or for fewer if no sequence can
/// be as long.
fn usual_kv_bytes(footprint: Footprint, batch: Batch) -> u64 {
    let pages_per_place = batch.context.min(TOKENS_PER_PLACE).div_ceil(PAGE_TOKENS);
    let pages = (batch.max_batch as u64).saturating_mul(pages_per_place as u64);
    pages.saturating_mul(footprint.kv_page)
}

/// How many snapshots of states are kept beside the `beside` bytes of everything else but pages.
fn snapshots(
    asked: Option<ByteSize>,
    footprint: Footprint,
    max_batch: usize,
    beside: u64,
    limit: Option<&Limit>,
) -> usize {
    if footprint.state == 0 {
        return 0;
    }
    let wanted = (max_batch as u64).saturating_mul(footprint.state);
    let bytes = match (asked, limit) {
        (Some(ByteSize(asked)), _) => asked,
        (None, Some(limit)) => wanted.min(limit.bytes.saturating_sub(beside) / 4),
        (None, None) => wanted,
    };
    usize::try_from(bytes / footprint.state).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
