//! Metrics that describe the served model, set once it is loaded.

use std::time::Duration;

use super::Metrics;
use super::declare::gauge_value;
use crate::build;

/// The state of the served weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightsState {
    /// They have not been compared with their checksums yet, or have no checksums.
    Unverified,
    /// They match their checksums.
    Verified,
    /// They do not match their checksums.
    Damaged,
}

/// What is known of the publisher's signature of the served model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SignatureState {
    /// It was not looked at.
    #[default]
    Off,
    /// There is none.
    Absent,
    /// The publisher has signed the files.
    Verified,
}

impl Metrics {
    /// Sets the bytes that the loaded weights take, given as `(component, dtype, bytes)`, and what their `elements`
    /// values would take in float.
    pub fn set_model_memory<'a>(
        &self,
        parts: impl IntoIterator<Item = (&'a str, &'a str, u64)>,
        elements: u64,
    ) {
        let mut total = 0;
        for (component, dtype, bytes) in parts {
            let gauge = self
                .model_weight_bytes
                .with_label_values(&[component, dtype]);
            gauge.set(gauge_value(bytes));
            total += bytes;
        }
        for (dtype, width) in [("f32", 4), ("bf16", 2)] {
            let reference = elements.saturating_mul(width);
            let reference = gauge_value(reference);
            self.model_reference_bytes
                .with_label_values(&[dtype])
                .set(reference);
            // Negative if the int8 format takes more memory than the floats.
            self.memory_saved_bytes
                .with_label_values(&[dtype])
                .set(reference - gauge_value(total));
        }
    }

    /// Sets the description of the model and the build.
    pub fn set_info(
        &self,
        model: &str,
        architecture: &str,
        context_length: usize,
        instruction_set: &str,
    ) {
        let context_length = context_length.to_string();
        self.model_info
            .with_label_values(&[model, architecture, "int8", &context_length])
            .set(1);
        self.build_info
            .with_label_values(&[build::VERSION, build::ID, instruction_set])
            .set(1);
    }

    /// Sets how long a phase of the start took.
    pub fn set_startup(&self, phase: &str, took: Duration) {
        self.startup_seconds
            .with_label_values(&[phase])
            .set(took.as_secs_f64());
    }

    /// Sets the description of the KV cache.
    pub fn set_kv_cache_info(&self, page_tokens: usize, pages: usize, prefix_cache: bool) {
        // As Python writes it, which is what those who read vLLM's label expect.
        let prefix_cache = if prefix_cache { "True" } else { "False" };
        self.kv_cache_info
            .with_label_values(&[&page_tokens.to_string(), &pages.to_string(), prefix_cache])
            .set(1);
    }

    /// Sets the state of the weights.
    pub fn set_weights_state(&self, now: WeightsState) {
        for (state, name) in [
            (WeightsState::Unverified, "unverified"),
            (WeightsState::Verified, "verified"),
            (WeightsState::Damaged, "damaged"),
        ] {
            let gauge = self.weights_state.with_label_values(&[name]);
            gauge.set(i64::from(state == now));
        }
    }

    /// Sets what is known of the publisher's signature.
    pub fn set_signature_state(&self, now: SignatureState) {
        for (state, name) in [
            (SignatureState::Off, "off"),
            (SignatureState::Absent, "absent"),
            (SignatureState::Verified, "verified"),
        ] {
            let gauge = self.signature_state.with_label_values(&[name]);
            gauge.set(i64::from(state == now));
        }
    }

    /// Sets the results of an evaluation of the served weights, measure by measure.
    pub fn set_accuracy(&self, measures: &[(&str, f64)]) {
        for &(measure, value) in measures {
            self.model_accuracy.with_label_values(&[measure]).set(value);
        }
    }
}
