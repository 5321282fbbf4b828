//! Tokenizers against ids from other software: Hugging Face's own for Granite, transformers' for SmolLM2.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::Tokenizer;

use microgranite::sources::{self, Reference, Settings, gguf};

use crate::assets;

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(json: &Value) -> Vec<u32> {
    let ids = json.as_array().unwrap().iter();
    ids.map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Encodes and decodes every golden text to which `applies` is true, and returns their number.
fn check_golden(
    assets: &Path,
    tokenizer: &Tokenizer,
    family: &str,
    applies: impl Fn(&str) -> bool,
) -> usize {
    let golden = json(assets.join("golden_tokens.json"));
    let cases = golden[family].as_array().unwrap();
    let mut checked = 0;
    for case in cases {
        let text = case["text"].as_str().unwrap();
        if !applies(text) {
            continue;
        }
        let expected = ids(&case["ids"]);
        let encoding = tokenizer.encode(text, true).unwrap();
        assert_eq!(encoding.get_ids(), expected, "{family}: {text:?}");
        for (skip, key) in [
            (false, "decoded_keep_special"),
            (true, "decoded_skip_special"),
        ] {
            let decoded = tokenizer.decode(&expected, skip).unwrap();
            assert_eq!(decoded, case[key].as_str().unwrap(), "{family}: {text:?}");
        }
        checked += 1;
    }
    checked
}

#[test]
#[ignore = "needs the Granite tokenizers: set MICROGRANITE_ASSETS"]
fn granite_tokenizer_files_give_the_published_ids() {
    let Some(assets) = assets() else { return };
    for family in ["granite-3.3", "granite-4.x"] {
        let file = assets.join(family).join("tokenizer.json");
        let tokenizer = Tokenizer::from_file(file).unwrap();
        assert_eq!(check_golden(&assets, &tokenizer, family, |_| true), 14);
    }
}

/// The vocabulary files belong to other models with the same tokenizer, so they lack Granite's added tokens.
#[test]
#[ignore = "needs the Granite tokenizers: set MICROGRANITE_ASSETS"]
fn gguf_vocabularies_give_the_ids_of_the_tokenizer_they_were_made_from() {
    let Some(assets) = assets() else { return };
    for (vocabulary, family) in [("refact", "granite-3.3"), ("dbrx", "granite-4.x")] {
        let name = format!("llama.cpp-vocab/ggml-vocab-{vocabulary}.gguf");
        let rebuilt = gguf::open_tokenizer(&assets.join(name)).unwrap();
        let checked = check_golden(&assets, &rebuilt, family, |text| !text.contains("<|"));
        assert!(checked >= 10, "{checked} texts are without added tokens");

        let original = assets.join(family).join("tokenizer.json");
        let original = Tokenizer::from_file(original).unwrap();
        for text in [
            "ied 4 ½ months, Ⅷ and ²³ and １２３",
            "don't DON'T we'll\r\n\r\n  tabs\t\tand   spaces  \n x",
            "Ünïcödé — 日本語のテキスト — עברית — 👩‍👩‍👧 \u{200b}!",
            "fn main() { println!(\"{:?}\", 0xFF_u8 + 1234567); }",
        ] {
            let expected = original.encode(text, true).unwrap();
            let encoding = rebuilt.encode(text, true).unwrap();
            assert_eq!(
                encoding.get_ids(),
                expected.get_ids(),
                "{vocabulary}: {text:?}"
            );
        }
    }
}

#[test]
#[ignore = "needs the demo model: run `microgranite pull demo` or have network"]
fn the_demo_model_tokenizes_as_transformers_does() {
    let settings = Settings::from_variables(|name| std::env::var(name).ok(), false);
    let checkpoint = sources::open(&Reference::Demo, &settings).unwrap();
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let reference = json(fixtures.join("smollm2-reference.json"));
    let cases = reference["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let prompt = case["prompt"].as_str().unwrap();
        let encoding = checkpoint.tokenizer.encode(prompt, true).unwrap();
        assert_eq!(encoding.get_ids(), ids(&case["ids"]), "{prompt:?}");
        let text = checkpoint
            .tokenizer
            .decode(&ids(&case["greedy_ids"]), false)
            .unwrap();
        assert_eq!(text, case["greedy_text"].as_str().unwrap());
    }
    assert_eq!(checkpoint.eos_token_ids, [2]);
}
