//! What is served: facts about the model, shown as metrics once it is loaded.

use super::Metrics;
use super::declare::gauge_value;
use crate::build;
use crate::model::WeightMemory;
use crate::model::evaluate::Evaluation;

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
    /// Shows what the loaded weights take, and what they would take in float.
    pub fn set_model_memory(&self, memory: &WeightMemory) {
        for &(component, dtype, bytes) in &memory.parts {
            let gauge = self
                .model_weight_bytes
                .with_label_values(&[component, dtype]);
            gauge.set(gauge_value(bytes));
        }
        for (dtype, width) in [("f32", 4), ("bf16", 2)] {
            let reference = memory.elements.saturating_mul(width);
            let reference = gauge_value(reference);
            self.model_reference_bytes
                .with_label_values(&[dtype])
                .set(reference);
            // Negative if the format should ever take more than the floats: then that is what to show.
            self.memory_saved_bytes
                .with_label_values(&[dtype])
                .set(reference - gauge_value(memory.total()));
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

    /// Shows what an evaluation of the served weights found.
    pub fn set_accuracy(&self, found: &Evaluation) {
        for (measure, value) in [
            ("kl_mean", found.kl_mean),
            ("same_top_token", found.same_top_token),
            ("perplexity", found.perplexity),
            ("perplexity_reference", found.perplexity_reference),
        ] {
            self.model_accuracy.with_label_values(&[measure]).set(value);
        }
    }
}
