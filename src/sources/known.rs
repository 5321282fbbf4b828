//! Names of models that users are likely to mean, and the one that is nearest to what was typed.

use std::cmp::Reverse;

/// IBM's models on the hub that run here, the likeliest of each kind last; and the demo model.
const HUB: [&str; 32] = [
    "demo",
    "hf:ibm-granite/granite-3.0-1b-a400m-instruct",
    "hf:ibm-granite/granite-3.0-3b-a800m-instruct",
    "hf:ibm-granite/granite-3.1-1b-a400m-instruct",
    "hf:ibm-granite/granite-3.1-3b-a800m-instruct",
    "hf:ibm-granite/granite-3.0-8b-instruct",
    "hf:ibm-granite/granite-3.0-2b-instruct",
    "hf:ibm-granite/granite-3.1-8b-instruct",
    "hf:ibm-granite/granite-3.1-2b-instruct",
    "hf:ibm-granite/granite-3.2-8b-instruct",
    "hf:ibm-granite/granite-3.2-2b-instruct",
    "hf:ibm-granite/granite-3.3-8b-instruct-GGUF",
    "hf:ibm-granite/granite-3.3-2b-instruct-GGUF",
    "hf:ibm-granite/granite-3.3-8b-instruct",
    "hf:ibm-granite/granite-3.3-2b-instruct",
    "hf:ibm-granite/granite-4.0-h-small",
    "hf:ibm-granite/granite-4.0-h-tiny",
    "hf:ibm-granite/granite-4.0-h-micro",
    "hf:ibm-granite/granite-4.0-h-350m",
    "hf:ibm-granite/granite-4.0-h-1b",
    "hf:ibm-granite/granite-4.0-micro",
    "hf:ibm-granite/granite-4.0-350m",
    "hf:ibm-granite/granite-4.0-1b",
    "hf:ibm-granite/granite-4.1-30b",
    "hf:ibm-granite/granite-4.1-8b-GGUF",
    "hf:ibm-granite/granite-4.1-3b-GGUF",
    "hf:ibm-granite/granite-4.1-8b",
    "hf:ibm-granite/granite-4.1-3b",
    "hf:ibm-granite/granite-4.2-30b",
    "hf:ibm-granite/granite-4.2-8b",
    "hf:ibm-granite/granite-4.2-3b",
    "hf:HuggingFaceTB/SmolLM2-135M-Instruct",
];

/// The same in Ollama's registry.
const OLLAMA: [&str; 16] = [
    "granite3.3:8b",
    "granite3.3:2b",
    "granite4:small-h",
    "granite4:tiny-h",
    "granite4:micro-h",
    "granite4:350m-h",
    "granite4:1b-h",
    "granite4:micro",
    "granite4:350m",
    "granite4:1b",
    "granite4.1:30b",
    "granite4.1:8b",
    "granite4.1:3b",
    "granite4.2:30b",
    "granite4.2:8b",
    "granite4.2:3b",
];

/// The similarity, from 0 to 1, from which one name is suggested for another: a letter or two apart.
const ALIKE: f64 = 0.8;
/// The most letters by which two names of the same kind may differ.
const MOST_ERRORS: usize = 3;

/// The known model whose name is closest to `text`, a bare name such as `granite3.3:2b`.
pub fn nearest(text: &str) -> Option<&'static str> {
    let is_name = |text: &str| !text.contains(['/', '\\']) && !text.starts_with('.');
    let wanted = letters(text);
    let score = |known: &&&str| {
        let known = letters(known);
        // A prefix of a known name counts as more than similar.
        let begins = !wanted.is_empty() && known.starts_with(&wanted);
        f64::from(begins) + strsim::jaro_winkler(&known, &wanted)
    };
    let best = HUB.iter().max_by(|a, b| score(a).total_cmp(&score(b)))?;
    (is_name(text) && score(&best) >= ALIKE).then_some(*best)
}

/// The known repository of the hub whose name differs from `repo` in a few letters.
pub fn nearest_repository(repo: &str) -> Option<&'static str> {
    let repositories = HUB.iter().filter_map(|known| known.strip_prefix("hf:"));
    nearest_of(repositories, repo)
}

/// The known model of Ollama's registry whose name differs from `name` in a few letters.
pub fn nearest_in_ollama(name: &str) -> Option<&'static str> {
    nearest_of(OLLAMA.iter().copied(), name)
}

/// The one of `names` that differs from `text` least, if that is little, but not nothing.
pub fn nearest_of<'a>(names: impl Iterator<Item = &'a str>, text: &str) -> Option<&'a str> {
    let text = text.to_lowercase();
    let errors = |name: &str| strsim::damerau_levenshtein(&name.to_lowercase(), &text);
    let (errors, name) = names
        .map(|name| (errors(name), name))
        // Of several that are as near, the last one.
        .max_by_key(|(errors, _)| Reverse(*errors))?;
    // In a short name a few letters are all of it.
    let most = MOST_ERRORS.min(text.chars().count() / 4);
    (1..=most).contains(&errors).then_some(name)
}

fn letters(text: &str) -> String {
    let text = text.rsplit('/').next().unwrap_or(text).to_lowercase();
    text.chars().filter(|c| c.is_alphanumeric()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
            (
                "granite-4.0-h-tny",
                Some("hf:ibm-granite/granite-4.0-h-tiny"),
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

    #[test]
    fn a_few_wrong_letters_are_seen_and_a_right_name_is_no_error() {
        for (repo, meant) in [
            (
                "ibm-granite/granite-3.3-2b-instrct",
                Some("ibm-granite/granite-3.3-2b-instruct"),
            ),
            (
                "ibm_granite/Granite-4.1-3b",
                Some("ibm-granite/granite-4.1-3b"),
            ),
            ("ibm-granite/granite-4.1-3b", None),
            ("meta-llama/Llama-3.2-1B", None),
            ("granite/tiny", None),
        ] {
            assert_eq!(nearest_repository(repo), meant, "{repo}");
        }
        assert_eq!(nearest_in_ollama("granit4.1:3b"), Some("granite4.1:3b"));
        assert_eq!(nearest_in_ollama("granite4.1:4b"), Some("granite4.1:3b"));
        assert_eq!(nearest_in_ollama("tiny:9b"), None);
    }
}
