//! Keeping the result of an evaluation with the packed model that it is about.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::Quantization;
use crate::error::{Error, Result};
use crate::model::evaluate::Evaluation;
use crate::sources::packed::Packed;

/// One evaluation: what was compared, on which text, and what came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// The name of the model whose f32 weights are the truth.
    pub reference: String,
    /// The kernel in use.
    pub kernel: String,
    /// The file, or the name of the text that is built in.
    pub text: String,
    /// Tokens that were run at once, each window from position 0.
    pub window: usize,
    /// Int8 against the reference.
    #[serde(flatten)]
    pub int8: Evaluation,
    /// Q8_0 against the reference, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub q8_0: Option<Evaluation>,
}

/// Adds `evaluation` to the evaluations of `quantization.json` and keeps all else, also what this program does not know.
/// The file is replaced whole: a reader finds the old one or the new one.
///
/// # Errors
/// [`Error::BadModel`] if the file is not what this program reads, [`Error::Usage`] for figures that are not numbers,
/// [`Error::Io`] if the file cannot be replaced.
pub fn record(packed: &Packed, evaluation: &EvaluationRecord) -> Result<()> {
    // JSON has no such numbers: the file could not be read again.
    if !(evaluation.int8.kl_mean.is_finite() && evaluation.int8.perplexity.is_finite()) {
        let problem = "the model's logits are not numbers";
        return Err(Error::Usage(problem.into()));
    }
    let mut evaluations = Quantization::of(packed)?.evaluations;
    evaluations.push(evaluation.clone());
    let json = |e: serde_json::Error| Error::Internal(e.to_string());
    let mut quantization = packed.quantization.clone();
    quantization["evaluations"] = serde_json::to_value(evaluations).map_err(json)?;
    let text = serde_json::to_vec_pretty(&quantization).map_err(json)?;

    let file = &packed.quantization_file;
    let folder = file.parent().unwrap_or(Path::new("."));
    let replaced = NamedTempFile::new_in(folder).and_then(|mut next| {
        next.write_all(&text)?;
        // A temporary file is its owner's alone; this one takes the place of a file that others may read.
        let permissions = std::fs::metadata(file)?.permissions();
        next.as_file().set_permissions(permissions)?;
        next.as_file().sync_all()?;
        next.persist(file)?;
        File::open(folder)?.sync_all()
    });
    replaced.map_err(|e| Error::io(file, e))
}
