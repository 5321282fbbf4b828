//! What the user may name as a model.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::Error;

/// A model as the user names it: a folder, a `.gguf` file, `hf:OWNER/NAME[@REVISION]`, or `demo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A folder in Hugging Face's layout.
    Folder(PathBuf),
    /// A single GGUF file.
    Gguf(PathBuf),
    /// A repository on the Hugging Face hub.
    Hub {
        /// `OWNER/NAME`.
        repo: String,
        /// A branch, tag or commit.
        revision: String,
    },
    /// The small model that needs no name: SmolLM2-135M-Instruct.
    Demo,
}

/// The revision that `hf:OWNER/NAME` means, as on the hub itself.
const DEFAULT_REVISION: &str = "main";

impl FromStr for Reference {
    type Err = Error;

    /// Reads a reference. Whether the file or folder exists is found out when it is opened.
    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(hub) = text.strip_prefix("hf:") {
            return parse_hub(hub).ok_or_else(|| {
                let form = "hf:OWNER/NAME or hf:OWNER/NAME@REVISION";
                Error::Usage(format!("{text:?} is not of the form {form}"))
            });
        }
        match text {
            "" => Err(Error::Usage("a model reference cannot be empty".into())),
            "demo" => Ok(Self::Demo),
            _ if is_gguf(Path::new(text)) => Ok(Self::Gguf(text.into())),
            _ => Ok(Self::Folder(text.into())),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) | Self::Gguf(path) => path.display().fmt(f),
            Self::Hub { repo, revision } if revision == DEFAULT_REVISION => write!(f, "hf:{repo}"),
            Self::Hub { repo, revision } => write!(f, "hf:{repo}@{revision}"),
            Self::Demo => f.write_str("demo"),
        }
    }
}

/// Whether a path ends in `.gguf`, in any case.
pub(super) fn is_gguf(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    extension.eq_ignore_ascii_case("gguf")
}

/// Both parts become path components of the cache and of the URL, so each is held to the hub's own alphabet.
fn parse_hub(text: &str) -> Option<Reference> {
    let (repo, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
    let (owner, name) = repo.split_once('/')?;
    let plain = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    // A branch such as `refs/pr/1` has slashes; each piece of it must be plain.
    let valid = plain(owner) && plain(name) && revision.split('/').all(plain);
    valid.then(|| Reference::Hub {
        repo: repo.into(),
        revision: revision.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_recognised_and_prints_as_it_was_typed() {
        let hub = |repo: &str, revision: &str| Reference::Hub {
            repo: repo.into(),
            revision: revision.into(),
        };
        for (text, reference) in [
            ("demo", Reference::Demo),
            ("./demo", Reference::Folder("./demo".into())),
            ("models/granite", Reference::Folder("models/granite".into())),
            ("a/b.gguf", Reference::Gguf("a/b.gguf".into())),
            ("B.GGUF", Reference::Gguf("B.GGUF".into())),
            (
                "hf:ibm-granite/granite-4.1-3b",
                hub("ibm-granite/granite-4.1-3b", "main"),
            ),
            ("hf:o/n@v1.0", hub("o/n", "v1.0")),
            ("hf:o/n@refs/pr/1", hub("o/n", "refs/pr/1")),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap(), reference);
            assert_eq!(reference.to_string(), text);
        }
    }

    #[test]
    fn a_malformed_hub_reference_is_a_usage_error() {
        for text in [
            "",
            "hf:",
            "hf:name",
            "hf:/n",
            "hf:o/",
            "hf:o/n/m",
            "hf:../n",
            "hf:o/..",
            "hf:o/n@",
            "hf:o/n@../x",
            "hf:o/n@a//b",
            "hf:o/n?x",
            "hf:o n/m",
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert_eq!(error.exit_code(), 64, "{text:?}: {error}");
        }
    }
}
