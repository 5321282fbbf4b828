//! How text is split before tokens are merged, by the label that GGUF files have for it.
//!
//! The labels are llama.cpp's. Their meaning is taken from the original tokenizers (`tokenizer.json` of the models that
//! gave the labels their names), with the original patterns where llama.cpp adapted them to its own engine.

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

/// How a tokenizer treats text before its merges.
pub struct PreTokenizer {
    /// Splits the text into words, and maps these to the byte alphabet.
    pub split: PreTokenizerWrapper,
    /// Whether a word that is itself a token is used directly: Llama 3 has tokens that no sequence of its merges
    /// produces.
    pub ignore_merges: bool,
}

/// A way to split text.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// As GPT-2 does: into words, numbers, punctuation and space.
    Gpt2,
    /// Every digit on its own, then as GPT-2.
    DigitsGpt2,
    /// By patterns in turn, each applied to the pieces that the previous ones left.
    Patterns(&'static [&'static str]),
}

/// cl100k_base, which Llama 3, DBRX and Granite 4 share.
const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// cl100k_base with each digit on its own.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// o200k_base: words end where a capital begins.
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's Tekken: o200k_base without contractions, each digit on its own.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
/// BLOOM's: up to the next space or punctuation mark, of several scripts.
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const DEEPSEEK_3: [&str; 3] = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
const DEEPSEEK_CODER: [&str; 5] = [
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    r"[一-龥ࠀ-一가-퟿]+",
    r"\p{N}",
];

/// The splitter for llama.cpp's `label`, if it is known here.
pub fn of_label(label: &str) -> Option<PreTokenizer> {
    let way = match label {
        // Granite 3 files have the label `refact`, for which llama.cpp splits off every digit first. Granite's own
        // tokenizer does not, and the two differ on numerals such as `½`. Granite 4.2 files have `granite-docling`.
        "gpt-2" | "refact" | "granite-docling" | "phi-2" | "olmo" | "mpt" | "jais" | "trillion"
        | "exaone4" | "gigachat" | "jina-es" | "jina-de" | "jina-v2-es" | "jina-v2-de"
        | "a.x-4.0" | "mellum" => Way::Gpt2,
        "smollm" | "starcoder" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            Way::DigitsGpt2
        }
        "dbrx" | "smaug-bpe" | "glm4" | "chatglm-bpe" => Way::Patterns(&[CL100K]),
        "tekken" => Way::Patterns(&[TEKKEN]),
        _ if takes_words_whole(label) => Way::Patterns(&[CL100K]),
        "qwen2" | "deepseek-r1-qwen" | "kormo" | "stablelm2" | "megrez" | "hunyuan" | "grok-2"
        | "solar-open" => Way::Patterns(&[QWEN2]),
        "gpt-4o" | "llama4" | "minimax-m2" => Way::Patterns(&[O200K]),
        "seed-coder" => Way::Patterns(&[SEED_CODER]),
        "bailingmoe" | "bailingmoe2" | "llada-moe" => Way::Patterns(&[BAILING]),
        "bloom" | "poro-chat" | "gpt3-finnish" => Way::Patterns(&[BLOOM]),
        "viking" => Way::Patterns(&[BLOOM, r"\p{N}"]),
        "deepseek-v3" | "hunyuan-dense" | "joyai-llm" => Way::Patterns(&DEEPSEEK_3),
        "deepseek-coder" => Way::Patterns(&DEEPSEEK_CODER),
        _ => return None,
    };
    Some(PreTokenizer {
        split: way.splitter()?,
        ignore_merges: takes_words_whole(label),
    })
}

/// Whether this tokenizer uses a word directly if it is a token.
fn takes_words_whole(label: &str) -> bool {
    let llama_3 = [
        "llama3",
        "llama-v3",
        "llama-bpe",
        "falcon3",
        "falcon-h1",
        "pixtral",
        "midm-2.0",
        "lfm2",
    ];
    llama_3.contains(&label) || label == "tekken"
}

/// The splitter of the Granite with these tokens, and a name for it: Granite 3 as GPT-2, 4.0 and 4.1 as cl100k_base,
/// 4.2, which ends turns with `<|im_end|>`, as GPT-2 again.
pub fn of_granite(tokens: &[&str]) -> (PreTokenizer, &'static str) {
    let has = |token: &str| tokens.contains(&token);
    // Granite 3 calls it `<fim_prefix>`.
    let is_cl100k = has("<|fim_prefix|>") && !has("<|im_end|>");
    let (way, name) = match is_cl100k {
        true => (Way::Patterns(&[CL100K]), "Granite 4.0 and 4.1"),
        false => (Way::Gpt2, "Granite 3"),
    };
    let split = way.splitter().expect("the patterns are constants");
    let ignore_merges = false;
    (
        PreTokenizer {
            split,
            ignore_merges,
        },
        name,
    )
}

impl Way {
    /// `None` if a pattern is invalid, which a test rules out.
    fn splitter(self) -> Option<PreTokenizerWrapper> {
        // `true` last: also split as GPT-2 did.
        let gpt2 = ByteLevel::new(false, true, true);
        let bytes_only = ByteLevel::new(false, true, false);
        Some(match self {
            Self::Gpt2 => gpt2.into(),
            Self::DigitsGpt2 => Sequence::new(vec![Digits::new(true).into(), gpt2.into()]).into(),
            Self::Patterns(patterns) => {
                let split = |pattern: &&str| {
                    let pattern = SplitPattern::Regex((*pattern).into());
                    Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map(Into::into)
                };
                let splits: Result<Vec<PreTokenizerWrapper>, _> =
                    patterns.iter().map(split).collect();
                let mut all = splits.ok()?;
                all.push(bytes_only.into());
                Sequence::new(all).into()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    use super::*;

    /// The pieces of a text, in its own characters.
    fn pieces(split: &PreTokenizerWrapper, text: &str) -> Vec<String> {
        let mut pieces = PreTokenizedString::from(text);
        split.pre_tokenize(&mut pieces).unwrap();
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits
            .into_iter()
            .map(|(_, (start, end), _)| text[start..end].to_owned())
            .collect()
    }

    #[test]
    fn every_label_splits_as_the_tokenizer_it_is_named_after() {
        const TEXT: &str = "Don't addNumbers 12345 — x;\n\n  y";
        for (labels, expected) in [
            (
                &[
                    "gpt-2",
                    "refact",
                    "granite-docling",
                    "olmo",
                    "mpt",
                    "exaone4",
                ][..],
                &[
                    "Don",
                    "'t",
                    " addNumbers",
                    " 12345",
                    " —",
                    " x",
                    ";",
                    "\n\n ",
                    " y",
                ][..],
            ),
            (
                &[
                    "smollm",
                    "starcoder",
                    "command-r",
                    "codeshell",
                    "minerva-7b",
                ],
                &[
                    "Don",
                    "'t",
                    " addNumbers",
                    " ",
                    "1",
                    "2",
                    "3",
                    "4",
                    "5",
                    " —",
                    " x",
                    ";",
                    "\n\n ",
                    " y",
                ],
            ),
            (
                &[
                    "dbrx",
                    "llama-bpe",
                    "llama3",
                    "smaug-bpe",
                    "glm4",
                    "falcon3",
                ],
                &[
                    "Don",
                    "'t",
                    " addNumbers",
                    " ",
                    "123",
                    "45",
                    " —",
                    " x",
                    ";\n\n",
                    " ",
                    " y",
                ],
            ),
            (
                &["qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"],
                &[
                    "Don",
                    "'t",
                    " addNumbers",
                    " ",
                    "1",
                    "2",
                    "3",
                    "4",
                    "5",
                    " —",
                    " x",
                    ";\n\n",
                    " ",
                    " y",
                ],
            ),
            (
                &["gpt-4o", "llama4"],
                &[
                    "Don't", " add", "Numbers", " ", "123", "45", " —", " x", ";\n\n", " ", " y",
                ],
            ),
            (
                &["tekken"],
                &[
                    "Don", "'t", " add", "Numbers", " ", "1", "2", "3", "4", "5", " —", " x",
                    ";\n\n", " ", " y",
                ],
            ),
            (
                &["seed-coder"],
                &[
                    "Don",
                    "'t",
                    " addNumbers",
                    " ",
                    "1",
                    "2",
                    "3",
                    "4",
                    "5",
                    " —",
                    " x",
                    ";",
                    "\n\n",
                    " ",
                    " y",
                ],
            ),
        ] {
            for label in labels {
                let found = of_label(label).unwrap();
                assert_eq!(pieces(&found.split, TEXT), expected, "{label}");
            }
        }
        // These have patterns of their own; together the pieces are the text.
        for label in [
            "bailingmoe",
            "bloom",
            "viking",
            "deepseek-v3",
            "deepseek-coder",
        ] {
            let found = of_label(label).unwrap();
            assert_eq!(pieces(&found.split, TEXT).concat(), TEXT, "{label}");
        }
        assert!(of_label("unheard-of").is_none() && of_label("default").is_none());
    }

    #[test]
    fn words_that_are_tokens_are_taken_whole_by_llama_3_and_tekken_alone() {
        for (label, whole) in [("llama-bpe", true), ("tekken", true), ("dbrx", false)] {
            assert_eq!(of_label(label).unwrap().ignore_merges, whole, "{label}");
        }
    }

    #[test]
    fn a_granite_without_a_known_label_splits_as_its_vocabulary_says() {
        for (tokens, numbers) in [
            (&["<fim_prefix>", "<|start_of_role|>"][..], &["12345"][..]),
            (&["<|fim_prefix|>", "<|start_of_role|>"], &["123", "45"]),
            (&["<|fim_prefix|>", "<|im_end|>"], &["12345"]),
            (&[], &["12345"]),
        ] {
            let (found, _) = of_granite(tokens);
            assert_eq!(pieces(&found.split, "12345"), numbers, "{tokens:?}");
        }
    }
}
