//! Storing the result of an evaluation in the packed model that was evaluated.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use tempfile::NamedTempFile;

use super::evaluation::EvaluationRecord;
use super::format::Quantization;
use crate::error::{Error, Result};
use crate::sources::packed::Packed;

/// Adds `evaluation` to the evaluations of `quantization.json` and keeps everything else, including fields that this
/// program does not know. The file is replaced in one step: readers see either the old one or the new one.
///
/// # Errors
/// [`Error::BadModel`] if this program cannot read the file, [`Error::Usage`] for figures that are NaN or infinite,
/// [`Error::Io`] if the file cannot be replaced.
pub fn record(packed: &Packed, evaluation: &EvaluationRecord) -> Result<()> {
    // JSON cannot express these numbers: the file could not be read again.
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
        // Only its owner may read a temporary file; the file that it replaces may be readable for others.
        let permissions = std::fs::metadata(file)?.permissions();
        next.as_file().set_permissions(permissions)?;
        next.as_file().sync_all()?;
        next.persist(file)?;
        File::open(folder)?.sync_all()
    });
    replaced.map_err(|e| Error::io(file, e))
}
