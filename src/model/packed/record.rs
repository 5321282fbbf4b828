//! Keeping the result of an evaluation with the packed model that it is about.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use tempfile::NamedTempFile;

use super::evaluation::EvaluationRecord;
use super::format::Quantization;
use crate::error::{Error, Result};
use crate::sources::packed::Packed;

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
