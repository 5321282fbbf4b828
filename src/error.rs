//! Errors outside a request; knows nothing of HTTP.
//!
//! Every variant prints as one line for the user and has a documented exit code (the `sysexits` numbers).

use std::fmt;
use std::path::{Path, PathBuf};

/// An error that ends a command. `Display` is the one line the user sees.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag, variable or reference makes no sense (exit 64).
    #[error("{0}")]
    Usage(String),
    /// A model file is malformed, truncated or not supported (exit 65).
    #[error("{}: {field}: {problem}", file.display())]
    BadModel {
        /// The file at fault.
        file: PathBuf,
        /// The key, tensor or part of the file.
        field: String,
        /// What is wrong, and what was expected.
        problem: String,
    },
    /// A file or folder that was named does not exist or cannot be opened (exit 66).
    #[error("{}: {problem}", path.display())]
    NotFound {
        /// The path as given.
        path: PathBuf,
        /// Why it could not be used.
        problem: String,
    },
    /// A download or an external service failed, and there is no cached copy (exit 69).
    #[error("{0}")]
    Unavailable(String),
    /// A defect in this program (exit 70).
    #[error("internal error: {0}")]
    Internal(String),
    /// Reading or writing failed half-way (exit 74).
    #[error("{}: {problem}", path.display())]
    Io {
        /// The file at fault.
        path: PathBuf,
        /// The system's reason.
        problem: String,
    },
    /// The settings are valid but cannot work on this machine, such as a cache larger than memory (exit 78).
    #[error("{0}")]
    Config(String),
}

/// The result of an operation outside a request.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A malformed model file, in one line that names the file and the field.
    pub fn bad_model(
        file: impl AsRef<Path>,
        field: impl fmt::Display,
        problem: impl fmt::Display,
    ) -> Self {
        Self::BadModel {
            file: file.as_ref().into(),
            field: one_line(field),
            problem: one_line(problem),
        }
    }

    /// An I/O failure on `path`.
    pub fn io(path: impl AsRef<Path>, problem: impl fmt::Display) -> Self {
        Self::Io {
            path: path.as_ref().into(),
            problem: problem.to_string(),
        }
    }

    /// A path that is missing or cannot be opened.
    pub fn not_found(path: impl AsRef<Path>, problem: impl fmt::Display) -> Self {
        Self::NotFound {
            path: path.as_ref().into(),
            problem: problem.to_string(),
        }
    }

    /// The process exit code, as documented in `docs/operations.md` and in `--help`.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,
            Self::BadModel { .. } => 65,
            Self::NotFound { .. } => 66,
            Self::Unavailable(_) => 69,
            Self::Internal(_) => 70,
            Self::Io { .. } => 74,
            Self::Config(_) => 78,
        }
    }
}

/// Removes line breaks and terminal codes, which text from a file may contain: an error is one line.
fn one_line(text: impl fmt::Display) -> String {
    text.to_string().replace(char::is_control, " ")
}
