//! The results of an evaluation.

use serde::{Deserialize, Serialize};

/// How much the other arithmetic differs from the reference, over all predicted tokens; `_se` are standard errors.
///
/// Shares and differences of probabilities are fractions of 1, divergences are in nats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Predicted tokens: all but the first of each window.
    pub tokens: usize,
    /// exp of the other arithmetic's mean negative log-probability of the text's own next token.
    pub perplexity: f64,
    /// Standard error of `perplexity`.
    pub perplexity_se: f64,
    /// The perplexity of the reference.
    pub perplexity_reference: f64,
    /// Standard error of `perplexity_reference`.
    pub perplexity_reference_se: f64,
    /// Mean Kullback–Leibler divergence KL(reference ‖ other) of the next-token distributions.
    pub kl_mean: f64,
    /// Standard error of `kl_mean`.
    pub kl_mean_se: f64,
    /// The divergence that half of the tokens stay below; absent in evaluations by earlier versions. In a mixture of experts
    /// the mean is that of a few tokens for which a router was near a tie and chose other experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_median: Option<f64>,
    /// The largest divergence at one token.
    pub kl_max: f64,
    /// Share of tokens for which both have the same most likely token.
    pub same_top_token: f64,
    /// Standard error of `same_top_token`.
    pub same_top_token_se: f64,
    /// Root mean square of the change in the probability of the text's own next token.
    pub rms_dp: f64,
    /// Standard error of `rms_dp`.
    pub rms_dp_se: f64,
}

/// One evaluation: what was compared, on which text, and the results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// The name of the model whose f32 weights are the reference.
    pub reference: String,
    /// The kernel in use.
    pub kernel: String,
    /// The file, or the name of the built-in text.
    pub text: String,
    /// Tokens per window; each window starts at position 0.
    pub window: usize,
    /// Int8 against the reference.
    #[serde(flatten)]
    pub int8: Evaluation,
    /// Q8_0 against the reference, if requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub q8_0: Option<Evaluation>,
}
