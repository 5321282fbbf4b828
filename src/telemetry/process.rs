//! Metrics of the process: memory, processor time, and log lines that were lost.

use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::Registry;

use super::declare::{add, gauge_value, metrics};
use crate::{cgroup, logging, memory};

metrics! {
    /// Metrics of the process.
    pub struct Process {
        /// Held while `process_cpu_seconds_total` is read and increased: with two scrapes at once, both would add the
        /// same difference.
        updating: Mutex<()>,
    }
    /// Resident memory in bytes, by kind.
    process_resident_bytes: IntGaugeVec[kind],
    /// Processor time of all threads, in user and system mode.
    process_cpu_seconds_total: Counter,
    /// Periods of the quota of processor time in which the cgroup of the process wanted to run; 0 without a quota.
    cgroup_cpu_periods_total: IntCounter,
    /// Periods in which the quota was used up before their end.
    cgroup_cpu_throttled_periods_total: IntCounter,
    /// Seconds that threads had to wait because the quota was used up.
    cgroup_cpu_throttled_seconds_total: Counter,
    /// Start of the process in seconds since the Unix epoch.
    process_start_time_seconds: IntGauge,
}

impl Process {
    /// Makes and registers these metrics and the counter of log lines that could not be written.
    pub fn new(registry: &Registry) -> Self {
        let process = Self::declare(registry, Mutex::new(()));
        add(registry, logging::lost_lines());
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        let seconds = since_epoch.unwrap_or_default().as_secs();
        process.process_start_time_seconds.set(gauge_value(seconds));
        process
    }

    /// Reads the current values from the system.
    pub fn update(&self) {
        if let Some(resident) = memory::resident() {
            for (kind, bytes) in [
                ("anon", resident.anon),
                ("file", resident.file),
                ("shmem", resident.shmem),
            ] {
                let gauge = self.process_resident_bytes.with_label_values(&[kind]);
                gauge.set(gauge_value(bytes));
            }
        }
        let _one_at_a_time = self.updating.lock();
        let seconds = cpu_seconds();
        let total = &self.process_cpu_seconds_total;
        total.inc_by((seconds - total.get()).max(0.0));
        if let Some(now) = cgroup::throttling() {
            for (total, count) in [
                (&self.cgroup_cpu_periods_total, now.periods),
                (&self.cgroup_cpu_throttled_periods_total, now.throttled),
            ] {
                total.inc_by(count.saturating_sub(total.get()));
            }
            let total = &self.cgroup_cpu_throttled_seconds_total;
            total.inc_by((now.seconds - total.get()).max(0.0));
        }
    }
}

/// The processor time of all threads of this process so far, in user and system mode.
pub fn cpu_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}
