//! Metrics of memory: what the process holds by component, what the kernel counts, and the difference.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::Registry;

use super::declare::{gauge_value, metrics};
use crate::memory;
use crate::memory::accounts::Accounts;

/// The figures are read again when they are older: reading the maps of a large process takes milliseconds.
const FRESH: Duration = Duration::from_secs(1);

metrics! {
    /// Metrics of memory.
    pub struct Memory {
        /// The accounts of the served model, and when they were last compared; `None` while it loads.
        accounts: Mutex<(Option<Accounts>, Option<Instant>)>,
    }
    /// Resident bytes of the process by component: code (programs and libraries), stacks, weights (codes), scales,
    /// kv_cache, states, step_buffers, runtime (allocated before the model was opened), tokenizer (with the chat template),
    /// description (the rest of what loading allocated), serving (allocated since), allocator_free (kept by the
    /// allocator), other_files.
    memory_bytes: IntGaugeVec[component],
    /// Resident bytes that the kernel counts beyond the sum of memory_bytes; negative if it counts less.
    memory_unexplained_bytes: IntGauge,
    /// Bytes of the buffers that steps have needed so far.
    step_buffer_bytes: IntGauge,
    /// Bytes of a mapped file of weights, by state: mapped is all of it, resident what is in memory for this process.
    weights_file_bytes: IntGaugeVec[state in ["mapped", "resident"]],
    /// The most resident memory that the process has ever had, in bytes.
    process_peak_resident_bytes: IntGauge,
    /// Resident bytes of the process, those that it shares with other processes divided by the number of these.
    process_proportional_bytes: IntGauge,
    /// Bytes of the cgroup of the process, by kind: current use, page cache included, and the limit, which is the
    /// machine's memory if no cgroup has one.
    cgroup_memory_bytes: IntGaugeVec[kind],
}

impl Memory {
    /// Makes and registers these metrics.
    pub fn new(registry: &Registry) -> Self {
        Self::declare(registry, Mutex::new((None, None)))
    }

    /// From now on the process's memory is compared with these accounts.
    pub fn set_accounts(&self, accounts: Accounts) {
        let mapped = accounts
            .mapped
            .as_ref()
            .map_or(0, |all| all.end - all.start);
        self.weights_file_bytes
            .with_label_values(&["mapped"])
            .set(gauge_value(mapped));
        *self.lock() = (Some(accounts), None);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Option<Accounts>, Option<Instant>)> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the current values from the system.
    pub fn update(&self) {
        let mut held = self.lock();
        let (accounts, read) = &mut *held;
        if read.is_some_and(|read| read.elapsed() < FRESH) {
            return;
        }
        *read = Some(Instant::now());
        if let Some(bytes) = memory::peak() {
            self.process_peak_resident_bytes.set(gauge_value(bytes));
        }
        if let Some(bytes) = memory::proportional() {
            self.process_proportional_bytes.set(gauge_value(bytes));
        }
        let limit = memory::limit().map(|limit| limit.bytes);
        for (kind, bytes) in [("current", memory::cgroup_usage()), ("limit", limit)] {
            if let Some(bytes) = bytes {
                let gauge = self.cgroup_memory_bytes.with_label_values(&[kind]);
                gauge.set(gauge_value(bytes));
            }
        }
        let buffers = self.step_buffer_bytes.get().try_into().unwrap_or(0);
        let Some(found) = accounts.as_ref().and_then(|all| all.reconcile(buffers)) else {
            return;
        };
        for (component, bytes) in &found.components {
            let gauge = self.memory_bytes.with_label_values(&[component]);
            gauge.set(gauge_value(*bytes));
        }
        self.memory_unexplained_bytes.set(found.unexplained);
        self.weights_file_bytes
            .with_label_values(&["resident"])
            .set(gauge_value(found.mapped));
    }
}
