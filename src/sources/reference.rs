//! The ways in which users can name a model.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::image::Image;
use super::known;
use crate::error::Error;

/// A model as the user names it: a folder, a `.gguf` file, `hf:OWNER/NAME[@REVISION][:LABEL]`, `ollama:NAME[:TAG]`,
/// `oci://HOST/REPOSITORY[:TAG|@DIGEST]`, or `demo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A folder in Hugging Face's layout.
    Folder(PathBuf),
    /// A GGUF file, or a part of one in parts.
    Gguf(PathBuf),
    /// A repository on the Hugging Face hub.
    Hub {
        /// `OWNER/NAME`.
        repo: String,
        /// A branch, tag or commit.
        revision: String,
        /// Selects one of its GGUF files: the label of a quantization, such as `Q8_0`, or a file's name.
        label: Option<String>,
    },
    /// A model in a registry of container images.
    Image(Image),
    /// The built-in demo model, SmolLM2-135M-Instruct.
    Demo,
}

/// The default revision, as on the hub itself.
const DEFAULT_REVISION: &str = "main";

/// The hub's own addresses, as they are copied from a browser.
const HUB_ADDRESSES: [&str; 3] = ["huggingface.co/", "www.huggingface.co/", "hf.co/"];

/// The syntax of a repository, for messages.
const HUB_FORM: &str = "hf:OWNER/NAME, with @REVISION for another one than main and :LABEL for one of its GGUF files, as in :Q8_0";

/// The syntax of images, for messages.
const OLLAMA_FORM: &str = "ollama:NAME or ollama:OWNER/NAME, with :TAG for another one than latest, as in ollama:granite4.1:3b";
const OCI_FORM: &str =
    "oci://HOST/REPOSITORY, with :TAG for another one than latest or @sha256:DIGEST";

impl FromStr for Reference {
    type Err = Error;

    /// Parses a reference. It does not check whether the file or folder exists.
    fn from_str(text: &str) -> Result<Self, Error> {
        let malformed = || Error::Usage(format!("{text:?} is not of the form {HUB_FORM}"));
        if let Some(hub) = text.strip_prefix("hf:") {
            return parse_hub(hub).ok_or_else(|| match known::nearest(hub) {
                Some(known) => {
                    let problem = format!("{text:?} names no owner; did you mean {known}?");
                    Error::Usage(problem)
                }
                None => malformed(),
            });
        }
        let image = |image: Option<Image>, form: &str| {
            let malformed = || Error::Usage(format!("{text:?} is not of the form {form}"));
            image.map(Self::Image).ok_or_else(malformed)
        };
        if let Some(name) = text.strip_prefix("ollama:") {
            return image(Image::of_ollama(name), OLLAMA_FORM);
        }
        if let Some(name) = text.strip_prefix("oci://") {
            return image(Image::of_oci(name), OCI_FORM);
        }
        if let Some((_, address)) = text.split_once("://") {
            let path = HUB_ADDRESSES
                .iter()
                .find_map(|hub| address.strip_prefix(hub));
            return path.and_then(parse_hub_page).ok_or_else(|| {
                let problem = "is not the address of a model on huggingface.co; name one as";
                Error::Usage(format!("{text:?} {problem} {HUB_FORM}; or as {OCI_FORM}"))
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
            Self::Hub {
                repo,
                revision,
                label,
            } => {
                write!(f, "hf:{repo}")?;
                if revision != DEFAULT_REVISION {
                    write!(f, "@{revision}")?;
                }
                label.as_ref().map_or(Ok(()), |label| write!(f, ":{label}"))
            }
            Self::Image(image) => image.fmt(f),
            Self::Demo => f.write_str("demo"),
        }
    }
}

/// Whether a path ends in `.gguf`, in any case.
pub(super) fn is_gguf(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    extension.eq_ignore_ascii_case("gguf")
}

/// Repository, revision and label become path components of the cache and of the URL, so each is held to the hub's own
/// alphabet.
fn parse_hub(text: &str) -> Option<Reference> {
    let end = text.find(['@', ':']).unwrap_or(text.len());
    let (repo, mut rest) = text.split_at(end);
    let (mut revision, mut label) = (None, None);
    // `@` and `:` occur at most once each, in either order.
    while let Some(sign) = rest.chars().next() {
        let end = rest[1..].find(['@', ':']).map_or(rest.len(), |at| at + 1);
        let part = &rest[1..end];
        let taken = if sign == '@' {
            &mut revision
        } else {
            &mut label
        };
        if taken.replace(part).is_some() {
            return None;
        }
        rest = &rest[end..];
    }
    hub(repo, revision.unwrap_or(DEFAULT_REVISION), label)
}

/// A page of the hub: the repository, its tree at a revision, or a file in it.
fn parse_hub_page(path: &str) -> Option<Reference> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
    match parts[..] {
        [owner, name] => hub(&format!("{owner}/{name}"), DEFAULT_REVISION, None),
        [owner, name, "tree", ref revision @ ..] if !revision.is_empty() => {
            hub(&format!("{owner}/{name}"), &revision.join("/"), None)
        }
        [owner, name, "blob" | "resolve", revision, file] if is_gguf(Path::new(file)) => {
            hub(&format!("{owner}/{name}"), revision, Some(file))
        }
        _ => None,
    }
}

fn hub(repo: &str, revision: &str, label: Option<&str>) -> Option<Reference> {
    let (owner, name) = repo.split_once('/')?;
    let plain = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    // A branch such as `refs/pr/1` has slashes; each part must be plain.
    let valid =
        plain(owner) && plain(name) && revision.split('/').all(plain) && label.is_none_or(plain);
    valid.then(|| Reference::Hub {
        repo: repo.into(),
        revision: revision.into(),
        label: label.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(repo: &str, revision: &str, label: Option<&str>) -> Reference {
        Reference::Hub {
            repo: repo.into(),
            revision: revision.into(),
            label: label.map(str::to_owned),
        }
    }

    #[test]
    fn every_form_is_recognised_and_prints_as_it_was_typed() {
        for (text, reference) in [
            ("demo", Reference::Demo),
            ("./demo", Reference::Folder("./demo".into())),
            ("models/granite", Reference::Folder("models/granite".into())),
            ("a/b.gguf", Reference::Gguf("a/b.gguf".into())),
            ("B.GGUF", Reference::Gguf("B.GGUF".into())),
            (
                "hf:ibm-granite/granite-4.1-3b",
                hub("ibm-granite/granite-4.1-3b", "main", None),
            ),
            ("hf:o/n@v1.0", hub("o/n", "v1.0", None)),
            ("hf:o/n@refs/pr/1", hub("o/n", "refs/pr/1", None)),
            ("hf:o/n:Q8_0", hub("o/n", "main", Some("Q8_0"))),
            ("hf:o/n@v1:Q4_K_M", hub("o/n", "v1", Some("Q4_K_M"))),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap(), reference);
            assert_eq!(reference.to_string(), text);
        }
    }

    #[test]
    fn revision_and_label_come_in_either_order_and_pages_of_the_hub_are_references_too() {
        for (text, reference) in [
            ("hf:o/n:Q8_0@v1", hub("o/n", "v1", Some("Q8_0"))),
            ("https://huggingface.co/o/n", hub("o/n", "main", None)),
            ("https://huggingface.co/o/n/", hub("o/n", "main", None)),
            (
                "https://hf.co/o/n?library=transformers",
                hub("o/n", "main", None),
            ),
            (
                "https://huggingface.co/o/n/tree/main",
                hub("o/n", "main", None),
            ),
            (
                "http://www.huggingface.co/o/n/tree/refs/pr/1",
                hub("o/n", "refs/pr/1", None),
            ),
            (
                "https://huggingface.co/o/n/blob/v1/n-Q8_0.gguf",
                hub("o/n", "v1", Some("n-Q8_0.gguf")),
            ),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap(), reference, "{text}");
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
            "hf:o/n:",
            "hf:o/n:a/b",
            "hf:o/n:a:b",
            "hf:o/n@a@b",
            "hf:o/n:../x",
            "https://huggingface.co/o",
            "https://huggingface.co/datasets/o/n",
            "https://huggingface.co/o/n/blob/main/model.safetensors",
            "https://example.com/o/n",
            "https://huggingface.co/../n",
            "ollama:",
            "ollama:a/b/c",
            "oci://",
            "oci://host",
            "oci://host/../x",
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert_eq!(error.exit_code(), 64, "{text:?}: {error}");
        }
    }
}
