//! What a packed model answered to a few prompts when it was made: `canary.json`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The name of the file in a packed folder.
pub const CANARY: &str = "canary.json";
/// The version of its format.
const FORMAT: u32 = 1;
/// Bytes of the file at most: hundreds of prompts.
const MOST_BYTES: u64 = 1 << 20;

/// A file with prompts and the beginnings of their answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryRecord {
    /// `1`.
    pub format: u32,
    /// The program that wrote it.
    pub created_by: String,
    /// The prompts.
    pub prompts: Vec<CanaryPrompt>,
}

/// One prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryPrompt {
    /// The text, for people.
    pub text: String,
    /// Its ids.
    pub prompt: Vec<u32>,
    /// The first ids of the greedy answer of the int8 model: as many as no rounding changes.
    pub answer: Vec<u32>,
}

impl CanaryRecord {
    /// A record of these prompts.
    pub fn new(created_by: String, prompts: Vec<CanaryPrompt>) -> Self {
        Self {
            format: FORMAT,
            created_by,
            prompts,
        }
    }

    /// Reads the file of a packed folder, if there is one.
    ///
    /// # Errors
    /// [`Error::BadModel`] for a file that is no such record, [`Error::Io`] for one that cannot be read.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(CANARY);
        let mut bytes = Vec::new();
        let read =
            File::open(&path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) => {}
            Err(problem) if problem.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(problem) => return Err(Error::io(&path, problem)),
        }
        if bytes.len() as u64 > MOST_BYTES {
            return Err(Error::bad_model(
                &path,
                "length",
                "larger than any such file",
            ));
        }
        let record: Self = serde_json::from_slice(&bytes)
            .map_err(|problem| Error::bad_model(&path, "JSON", problem))?;
        if record.format != FORMAT {
            let problem = format!("is {}, and this program reads {FORMAT}", record.format);
            return Err(Error::bad_model(&path, "format", problem));
        }
        Ok(Some(record))
    }

    /// Writes the file into a packed folder.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(CANARY);
        let json = serde_json::to_vec_pretty(self);
        let json = json.map_err(|problem| Error::Internal(problem.to_string()))?;
        std::fs::write(&path, json).map_err(|problem| Error::io(&path, problem))
    }
}
