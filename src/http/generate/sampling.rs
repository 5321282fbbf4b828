//! The fields for sampling, and the ranges of the numbers among them.

use crate::engine::Sampling;
use crate::http::error_body::ApiError;
use crate::http::fields::{Fields, invalid};
use crate::http::values::{ById, Range};
use crate::sources::generation::GenerationDefaults;

/// OpenAI's range; 0 always chooses the likeliest token.
pub const TEMPERATURE: Range = Range::new(0.0, 2.0, 1.0);
/// A share of the probability; a share of 0 would leave no token.
pub const TOP_P: Range = Range::above(0.0, 1.0, 1.0);
/// A share of the likeliest token's probability.
pub const MIN_P: Range = Range::new(0.0, 1.0, 0.0);
/// OpenAI's range, of `presence_penalty` and `frequency_penalty`.
pub const PENALTY: Range = Range::new(-2.0, 2.0, 0.0);
/// Outside this range, the penalty would outweigh the logits entirely.
pub const REPETITION_PENALTY: Range = Range::new(0.01, 100.0, 1.0);
/// OpenAI's range. The ends of it already forbid or force a token.
pub const LOGIT_BIAS: Range = Range::new(-100.0, 100.0, 0.0);
/// Entries of `logit_bias`, `allowed_token_ids` and `bad_words`: each takes a little time for every token.
pub const MAX_ENTRIES: usize = 1024;

/// Which fields a request leaves to the model's own defaults.
#[derive(Debug, Clone, Copy)]
pub struct Unset {
    temperature: bool,
    top_p: bool,
    top_k: bool,
    repetition_penalty: bool,
}

impl Unset {
    /// Finds the fields that are absent. Must be called before they are taken.
    pub fn of(f: &Fields<'_>) -> Self {
        Self {
            temperature: f.is_unset("temperature"),
            top_p: f.is_unset("top_p"),
            top_k: f.is_unset("top_k"),
            repetition_penalty: f.is_unset("repetition_penalty"),
        }
    }

    /// Sets the fields that are absent to the model's `defaults`.
    pub fn fill(self, sampling: &mut Sampling, defaults: &GenerationDefaults) {
        fn put<T: Copy>(field: &mut T, is_unset: bool, default: Option<T>) {
            if let Some(default) = default.filter(|_| is_unset) {
                *field = default;
            }
        }
        let float = |value: Option<f64>| value.map(|value| value as f32);
        let temperature = float(defaults.temperature);
        put(&mut sampling.temperature, self.temperature, temperature);
        let top_p = float(defaults.top_p).map(|share| share.max(f32::MIN_POSITIVE));
        put(&mut sampling.top_p, self.top_p, top_p);
        put(&mut sampling.top_k, self.top_k, defaults.top_k);
        let penalty = &mut sampling.repetition_penalty;
        let default = float(defaults.repetition_penalty);
        put(penalty, self.repetition_penalty, default);
    }
}

/// Takes the fields. The caller sets the seed and the banned words.
///
/// # Errors
/// The first field, in the order below, that is of the wrong type or out of range.
pub fn take(f: &mut Fields<'_>) -> Result<Sampling, ApiError> {
    let temperature = f.number("temperature", TEMPERATURE)?;
    let top_p = f.number("top_p", TOP_P)?;
    let expected = "an integer of at least 1, or 0 or -1 for no limit";
    let top_k = f.integer("top_k", expected)?.unwrap_or(0);
    if top_k < -1 {
        return Err(invalid("top_k", expected));
    }
    Ok(Sampling {
        temperature,
        // A value that is too small for f32 must still keep one token.
        top_p: top_p.max(f32::MIN_POSITIVE),
        top_k: usize::try_from(top_k).unwrap_or(0),
        min_p: f.number("min_p", MIN_P)?,
        presence_penalty: f.number("presence_penalty", PENALTY)?,
        frequency_penalty: f.number("frequency_penalty", PENALTY)?,
        repetition_penalty: f.number("repetition_penalty", REPETITION_PENALTY)?,
        allowed_ids: allowed_ids(f)?,
        logit_bias: logit_bias(f)?,
        banned_sequences: Vec::new(),
        seed: 0,
    })
}

/// Takes `allowed_token_ids`, in ascending order.
fn allowed_ids(fields: &mut Fields<'_>) -> Result<Vec<u32>, ApiError> {
    const PARAM: &str = "allowed_token_ids";
    let expected = format!("a list of 1 to {MAX_ENTRIES} token ids");
    let Some(mut ids) = fields.ids(PARAM, &expected)? else {
        return Ok(Vec::new());
    };
    if !(1..=MAX_ENTRIES).contains(&ids.len()) {
        return Err(invalid(PARAM, expected));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn logit_bias(fields: &mut Fields<'_>) -> Result<Vec<(u32, f32)>, ApiError> {
    const PARAM: &str = "logit_bias";
    let expected = format!(
        "an object of at most {MAX_ENTRIES} token ids, each of them once and with {LOGIT_BIAS}"
    );
    let ById(biases) = fields.take(PARAM, &expected)?.unwrap_or_default();
    let are_good = biases.values().all(|&bias| LOGIT_BIAS.contains(bias));
    if biases.len() > MAX_ENTRIES || !are_good {
        return Err(invalid(PARAM, expected));
    }
    let biases = biases.into_iter();
    Ok(biases.map(|(id, bias)| (id, bias as f32)).collect())
}
