//! Suggestions for a folder or file that does not exist.

use std::path::Path;

use super::image::Image;
use super::reference::Reference;
use crate::error::Error;

/// Models that users are likely to name, as the hub calls them: the dense Granites, and the demo model.
const KNOWN: [&str; 14] = [
    "demo",
    "hf:ibm-granite/granite-3.3-2b-instruct",
    "hf:ibm-granite/granite-3.3-8b-instruct",
    "hf:ibm-granite/granite-3.2-2b-instruct",
    "hf:ibm-granite/granite-3.2-8b-instruct",
    "hf:ibm-granite/granite-3.1-2b-instruct",
    "hf:ibm-granite/granite-3.1-8b-instruct",
    "hf:ibm-granite/granite-3.0-2b-instruct",
    "hf:ibm-granite/granite-3.0-8b-instruct",
    "hf:ibm-granite/granite-4.0-350m",
    "hf:ibm-granite/granite-4.0-1b",
    "hf:ibm-granite/granite-4.0-micro",
    "hf:ibm-granite/granite-4.1-3b",
    "hf:ibm-granite/granite-4.1-8b",
];

/// The similarity, from 0 to 1, from which one name is suggested for another: a letter or two apart.
const ALIKE: f64 = 0.8;

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
    let meant = if is_repository {
        format!("; the repository of that name on the Hugging Face hub is {hub}")
    } else {
        match (nearest(&text), in_ollama(&text)) {
            (Some(known), Some(image)) => format!("; did you mean {known}, or {image}?"),
            (Some(meant), None) => format!("; did you mean {meant}?"),
            (None, Some(image)) => format!("; did you mean {image}?"),
            (None, None) => String::new(),
        }
    };
    Error::not_found(path, format!("{problem}{meant}"))
}

/// The known model closest to `text`, a bare name such as Ollama's `granite3.3:2b`.
fn nearest(text: &str) -> Option<&'static str> {
    let is_name = |text: &str| !text.contains(['/', '\\']) && !text.starts_with('.');
    let letters = |text: &str| -> String {
        let text = text.rsplit('/').next().unwrap_or(text).to_lowercase();
        text.chars().filter(|c| c.is_alphanumeric()).collect()
    };
    let wanted = letters(text);
    let score = |known: &&&str| {
        let known = letters(known);
        // A prefix of a known name counts as more than similar.
        let begins = !wanted.is_empty() && known.starts_with(&wanted);
        f64::from(begins) + strsim::jaro_winkler(&known, &wanted)
    };
    let best = KNOWN
        .iter()
        .rev()
        .max_by(|a, b| score(a).total_cmp(&score(b)))?;
    (is_name(text) && score(&best) >= ALIKE).then_some(*best)
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
    fn a_name_that_is_almost_known_is_completed_and_others_are_left_alone() {
        for (text, meant) in [
            ("granite3.3", Some("hf:ibm-granite/granite-3.3-2b-instruct")),
            (
                "granite3.3:8b",
                Some("hf:ibm-granite/granite-3.3-8b-instruct"),
            ),
            (
                "granite-4.0-micro",
                Some("hf:ibm-granite/granite-4.0-micro"),
            ),
            ("granite-4.1-3B", Some("hf:ibm-granite/granite-4.1-3b")),
            ("dmeo", Some("demo")),
            ("llama.gguf", None),
            ("/models/granite-4.1-3b", None),
            ("./granite-4.1-3b", None),
            ("mistral", None),
        ] {
            assert_eq!(nearest(text), meant, "{text}");
        }
    }
}
