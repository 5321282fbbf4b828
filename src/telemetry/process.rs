//! What the process itself takes: memory, processor time, and lines that its log lost.

use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{Counter, IntCounter, IntGauge, IntGaugeVec, Registry};

use super::registry::{gauge, gauge_value, gauges, opts, register};
use crate::{logging, memory};

/// Metrics of the process.
pub struct Process {
    /// Resident memory by kind: `anon`, `file`, `shmem`.
    pub resident_bytes: IntGaugeVec,
    /// Processor time of all threads.
    pub cpu_seconds_total: Counter,
    /// When the process started.
    pub start_time_seconds: IntGauge,
    /// Log lines that could not be written.
    pub log_lines_dropped_total: IntCounter,
    /// A counter is moved by what was added since it was read, which only one scrape at a time may do.
    updating: Mutex<()>,
}

impl Process {
    /// Creates and registers them.
    pub fn new(r: &Registry) -> Self {
        let process = Self {
            resident_bytes: gauges(
                r,
                "process_resident_bytes",
                "Resident memory by kind.",
                &["kind"],
            ),
            cpu_seconds_total: register(
                r,
                Counter::with_opts(opts(
                    "process_cpu_seconds_total",
                    "Processor time of all threads, in user and system mode.",
                )),
            ),
            start_time_seconds: gauge(
                r,
                "process_start_time_seconds",
                "Start of the process in seconds since the Unix epoch.",
            ),
            log_lines_dropped_total: register(r, Ok(logging::lost_lines())),
            updating: Mutex::new(()),
        };
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        let seconds = since_epoch.unwrap_or_default().as_secs();
        process.start_time_seconds.set(gauge_value(seconds));
        process
    }

    /// Asks the system for the figures of this moment.
    pub fn update(&self) {
        if let Some(resident) = memory::resident() {
            for (kind, bytes) in [
                ("anon", resident.anon),
                ("file", resident.file),
                ("shmem", resident.shmem),
            ] {
                let gauge = self.resident_bytes.with_label_values(&[kind]);
                gauge.set(gauge_value(bytes));
            }
        }
        let _one_at_a_time = self.updating.lock();
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let seconds = used.tv_sec as f64 + used.tv_nsec as f64 / 1e9;
        let total = &self.cpu_seconds_total;
        total.inc_by((seconds - total.get()).max(0.0));
    }
}
