//! What int8 saves, as `verify-savings` has measured it, and the file that holds it.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// The name of the file in a packed folder.
pub const SAVINGS: &str = "savings.json";

/// The version of the file's format that this program writes and reads.
const FORMAT: u32 = 1;

/// Many times what this program writes.
const MOST_BYTES: u64 = 64 << 10;

/// One checkpoint, run in int8 and in f32, each in a process of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavingsRecord {
    /// The version of this format.
    pub format: u32,
    /// The model's name.
    pub model: String,
    /// The model whose weights ran in f32.
    pub reference: String,
    /// The program that measured.
    pub created_by: String,
    /// When, in seconds since the Unix epoch.
    pub created: u64,
    /// The instruction set of the int8 side.
    pub kernel: String,
    /// Compute threads of both sides.
    pub threads: usize,
    /// Tokens of the prompt that was timed.
    pub prompt_tokens: usize,
    /// Decoding steps that were timed.
    pub steps: usize,
    /// The int8 side.
    pub int8: Measured,
    /// The f32 side.
    pub f32: Measured,
    /// Predicted tokens on which the two were compared.
    pub tokens: usize,
    /// Mean Kullback–Leibler divergence of int8 from f32, in nats.
    pub kl_mean: f64,
    /// Its standard error.
    pub kl_mean_se: f64,
    /// Share of tokens for which both have the same most likely token.
    pub same_top_token: f64,
}

/// What one process took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Resident bytes at the end, files that it mapped included.
    pub resident_bytes: u64,
    /// Of these, pages of mapped files.
    pub resident_file_bytes: u64,
    /// The most that was ever resident.
    pub peak_bytes: u64,
    /// Seconds from the start until the first prompt could run.
    pub ready_seconds: f64,
    /// Processor seconds of all threads, from the start to the end.
    pub cpu_seconds: f64,
    /// Prompt tokens per second.
    pub prefill_tokens_per_second: f64,
    /// Generated tokens per second, of one sequence.
    pub decode_tokens_per_second: f64,
    /// Joules per token of prompt and answer, of all processors of the machine; `null` if they do not say.
    pub joules_per_token: Option<f64>,
}

impl SavingsRecord {
    /// The version of the format of new records.
    pub const fn format() -> u32 {
        FORMAT
    }

    /// Reads the record at `path`.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, [`Error::BadModel`] for a file of another kind or with impossible figures.
    pub fn read(path: &Path) -> Result<Self> {
        let bad = |problem: String| Error::bad_model(path, "savings", problem);
        let file = File::open(path).map_err(|e| Error::not_found(path, e))?;
        let mut text = Vec::new();
        file.take(MOST_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(|e| Error::io(path, e))?;
        if text.len() as u64 > MOST_BYTES {
            return Err(bad(format!("has more than {MOST_BYTES} bytes")));
        }
        let record: Self = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        if record.format != FORMAT {
            let found = record.format;
            return Err(bad(format!(
                "has format {found}; this program reads {FORMAT}"
            )));
        }
        for (name, side) in [("int8", &record.int8), ("f32", &record.f32)] {
            if !side.is_possible() {
                return Err(bad(format!("{name} has a figure that cannot be")));
            }
        }
        Ok(record)
    }

    /// Writes the record to `path` in one step.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(|e| Error::Internal(e.to_string()))?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let written = NamedTempFile::new_in(folder).and_then(|mut next| {
            next.write_all(&text)?;
            #[cfg(unix)]
            {
                // Only its owner may read a temporary file; the server may be another user.
                use std::os::unix::fs::PermissionsExt;
                next.as_file()
                    .set_permissions(std::fs::Permissions::from_mode(0o644))?;
            }
            next.as_file().sync_all()?;
            next.persist(path)?;
            Ok(())
        });
        written.map_err(|e| Error::io(path, e))
    }
}

impl Measured {
    fn is_possible(&self) -> bool {
        let times = [
            self.ready_seconds,
            self.cpu_seconds,
            self.prefill_tokens_per_second,
            self.decode_tokens_per_second,
            self.joules_per_token.unwrap_or(0.0),
        ];
        self.resident_bytes > 0
            && self.peak_bytes >= self.resident_bytes
            && self.resident_file_bytes <= self.resident_bytes
            && times.iter().all(|time| time.is_finite() && *time >= 0.0)
    }
}

#[cfg(test)]
impl SavingsRecord {
    /// Figures for tests.
    pub(crate) fn example() -> Self {
        let side = |bytes| Measured {
            resident_bytes: bytes,
            resident_file_bytes: bytes / 2,
            peak_bytes: 2 * bytes,
            ready_seconds: 0.5,
            cpu_seconds: 3.0,
            prefill_tokens_per_second: 900.0,
            decode_tokens_per_second: 90.0,
            joules_per_token: None,
        };
        Self {
            format: FORMAT,
            model: "m".into(),
            reference: "m".into(),
            created_by: "microgranite".into(),
            created: 1_700_000_000,
            kernel: "scalar".into(),
            threads: 2,
            prompt_tokens: 128,
            steps: 16,
            int8: side(100 << 20),
            f32: side(400 << 20),
            tokens: 511,
            kl_mean: 0.004,
            kl_mean_se: 0.0002,
            same_top_token: 0.97,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SAVINGS);
        SavingsRecord::example().write(&path).unwrap();
        assert_eq!(
            SavingsRecord::read(&path).unwrap(),
            SavingsRecord::example()
        );
    }

    #[test]
    fn what_is_no_record_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SAVINGS);
        assert_eq!(SavingsRecord::read(&path).unwrap_err().exit_code(), 66);
        let text = serde_json::to_string(&SavingsRecord::example()).unwrap();
        for (text, problem) in [
            ("{}".to_owned(), "missing field"),
            (text.replace("\"format\":1", "\"format\":2"), "has format 2"),
            (
                text.replace("\"ready_seconds\":0.5", "\"ready_seconds\":-1"),
                "int8 has a figure",
            ),
            (
                text.replace("\"peak_bytes\":838860800", "\"peak_bytes\":1"),
                "f32 has a figure",
            ),
            (" ".repeat(100_000), "more than 65536 bytes"),
        ] {
            std::fs::write(&path, &text).unwrap();
            let refused = SavingsRecord::read(&path).unwrap_err();
            assert_eq!(refused.exit_code(), 65);
            assert!(refused.to_string().contains(problem), "{refused}");
        }
    }
}
