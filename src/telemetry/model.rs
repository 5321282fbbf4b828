//! What is served: facts about the model, shown as metrics once it is loaded.

use super::Metrics;
use super::declare::gauge_value;
use crate::build;

/// What is known of the weights that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightsState {
    /// They have not been compared with their checksums (yet), or have none.
    Unverified,
    /// They are what was written.
    Verified,
    /// They are not.
    Damaged,
}

impl Metrics {
    /// Shows what the loaded weights take, `(component, dtype, bytes)`, and what their `elements` values would take in
    /// float.
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
            // Negative if the format should ever take more than the floats: then that is what to show.
            self.memory_saved_bytes
                .with_label_values(&[dtype])
                .set(reference - gauge_value(total));
        }
    }

    /// Shows what is served and by which build.
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

    /// Shows what is known of the weights.
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

    /// Shows what an evaluation of the served weights found, measure by measure.
    pub fn set_accuracy(&self, measures: &[(&str, f64)]) {
        for &(measure, value) in measures {
            self.model_accuracy.with_label_values(&[measure]).set(value);
        }
    }
}
