//! Suggestions for a folder or file that does not exist.

use std::path::{Path, PathBuf};

use super::image::Image;
use super::known;
use super::reference::Reference;
use crate::error::Error;

/// Ollama's name for a model, if `text` is of that form: a name with a tag.
fn in_ollama(text: &str) -> Option<String> {
    let reference = format!("ollama:{text}");
    let is_name = text.contains(':') && Image::of_ollama(text).is_some();
    is_name.then_some(reference)
}

/// The error for `path`, where there is nothing.
pub fn not_there(path: &Path) -> Error {
    let text = path.to_string_lossy();
    let hub = format!("hf:{text}");
    let is_repository = !text.starts_with(['.', '~']) && hub.parse::<Reference>().is_ok();
    let problem = "no such file or folder";
    let meant = if let Some(beside) = beside(path) {
        format!("; did you mean {}?", beside.display())
    } else if is_repository {
        match known::nearest_repository(&text) {
            Some(known) => format!("; did you mean hf:{known}?"),
            None => format!("; the repository of that name on the Hugging Face hub is {hub}"),
        }
    } else {
        match (known::nearest(&text), in_ollama(&text)) {
            (Some(known), Some(image)) => format!("; did you mean {known}, or {image}?"),
            (Some(meant), None) => format!("; did you mean {meant}?"),
            (None, Some(image)) => format!("; did you mean {image}?"),
            (None, None) => String::new(),
        }
    };
    Error::not_found(path, format!("{problem}{meant}"))
}

/// Names in a folder that are looked at: people have fewer models.
const MOST_BESIDE: usize = 1000;

/// What lies beside `path` and has nearly its name.
fn beside(path: &Path) -> Option<PathBuf> {
    let folder = match path.parent()? {
        folder if folder.as_os_str().is_empty() => Path::new("."),
        folder => folder,
    };
    let entries = std::fs::read_dir(folder).ok()?.flatten().take(MOST_BESIDE);
    let names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    let name = path.file_name()?.to_str()?;
    let nearest = known::nearest_of(names.iter().map(String::as_str), name)?;
    Some(path.with_file_name(nearest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_s_name_is_suggested_with_its_prefix() {
        let line = not_there(Path::new("ibm-granite/granite-3.3-2b-instruct")).to_string();
        assert!(
            line.ends_with("is hf:ibm-granite/granite-3.3-2b-instruct"),
            "{line}"
        );
    }

    #[test]
    fn a_name_with_a_tag_is_ollama_s() {
        for (text, meant) in [
            (
                "granite3.3:8b",
                "did you mean hf:ibm-granite/granite-3.3-8b-instruct, or ollama:granite3.3:8b?",
            ),
            ("qwen3:4b", "did you mean ollama:qwen3:4b?"),
        ] {
            let line = not_there(Path::new(text)).to_string();
            assert!(line.ends_with(meant), "{line}");
        }
        let line = not_there(Path::new("./qwen3:4b")).to_string();
        assert!(line.ends_with("no such file or folder"), "{line}");
    }

    #[test]
    fn what_lies_beside_a_path_is_suggested_before_anything_else() {
        let folder = tempfile::tempdir().unwrap();
        let right = folder.path().join("granite-2b-int8");
        std::fs::create_dir(&right).unwrap();
        let line = not_there(&folder.path().join("granite-2b-in8")).to_string();
        let meant = format!("did you mean {}?", right.display());
        assert!(line.ends_with(&meant), "{line}");
        let line = not_there(&folder.path().join("something-else")).to_string();
        assert!(line.ends_with("no such file or folder"), "{line}");
    }
}
