//! Metrics of what int8 saves, as `verify-savings` measured it on the served model; none if it did not.

use prometheus::Registry;

use super::declare::metrics;

metrics! {
    /// What int8 takes, and what f32 took in its place.
    pub struct Savings {}
    /// Resident bytes of a process that ran the model, by dtype, as verify-savings measured them.
    savings_measured_resident_bytes: GaugeVec[dtype],
    /// The most resident bytes that such a process ever had, by dtype.
    savings_measured_peak_bytes: GaugeVec[dtype],
    /// Seconds until such a process could run a prompt, by dtype.
    savings_measured_ready_seconds: GaugeVec[dtype],
    /// Processor seconds that such a process took in all, by dtype.
    savings_measured_cpu_seconds: GaugeVec[dtype],
    /// Tokens per second of such a process, by dtype and phase: prefill or decode.
    savings_measured_tokens_per_second: GaugeVec[dtype, phase],
    /// Joules per token of such a process, by dtype; absent if the machine does not say.
    savings_measured_joules_per_token: GaugeVec[dtype],
    /// How far int8 is from f32, by measure: kl_mean in nats, and same_top_token as a share.
    savings_measured_divergence: GaugeVec[measure],
}

/// The figures of one dtype.
#[derive(Debug, Clone, Copy)]
pub struct SavingsOf {
    /// Such as `int8`.
    pub dtype: &'static str,
    /// Resident bytes.
    pub resident_bytes: u64,
    /// The most of them.
    pub peak_bytes: u64,
    /// Seconds to the start.
    pub ready_seconds: f64,
    /// Processor seconds.
    pub cpu_seconds: f64,
    /// Prompt and generated tokens per second.
    pub tokens_per_second: [f64; 2],
    /// Joules per token.
    pub joules_per_token: Option<f64>,
}

impl Savings {
    /// Makes and registers these metrics.
    pub fn new(registry: &Registry) -> Self {
        Self::declare(registry)
    }

    /// Sets the figures of both sides, and how far int8 is from f32, by measure.
    pub fn set(&self, sides: [SavingsOf; 2], divergence: &[(&str, f64)]) {
        for side in sides {
            let dtype = side.dtype;
            for (gauge, value) in [
                (
                    &self.savings_measured_resident_bytes,
                    side.resident_bytes as f64,
                ),
                (&self.savings_measured_peak_bytes, side.peak_bytes as f64),
                (&self.savings_measured_ready_seconds, side.ready_seconds),
                (&self.savings_measured_cpu_seconds, side.cpu_seconds),
            ] {
                gauge.with_label_values(&[dtype]).set(value);
            }
            for (phase, value) in ["prefill", "decode"].iter().zip(side.tokens_per_second) {
                self.savings_measured_tokens_per_second
                    .with_label_values(&[dtype, phase])
                    .set(value);
            }
            if let Some(joules) = side.joules_per_token {
                self.savings_measured_joules_per_token
                    .with_label_values(&[dtype])
                    .set(joules);
            }
        }
        for (measure, value) in divergence {
            self.savings_measured_divergence
                .with_label_values(&[measure])
                .set(*value);
        }
    }
}
