//! A trained model as a checkpoint in Hugging Face's layout, for `microgranite quantize`, `eval` and `serve`.

use std::collections::HashMap;
use std::path::Path;

use microgranite::error::{Error, Result};
use serde_json::{Map, Value, json};

use crate::model::{Granite, config};
use crate::text::VOCABULARY;

/// Writes `config.json`, `tokenizer.json` and `model.safetensors` into `folder`, which is created if necessary.
///
/// # Errors
/// [`Error::Io`] naming the file that cannot be written.
pub fn export(model: &Granite, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    for (name, content) in [("config.json", config()), ("tokenizer.json", tokenizer())] {
        let file = folder.join(name);
        std::fs::write(&file, content.to_string()).map_err(|e| Error::io(&file, e))?;
    }
    let weights = model.weights().iter();
    let tensors: HashMap<_, _> = weights
        .map(|(name, var)| (name, var.as_tensor().clone()))
        .collect();
    let file = folder.join("model.safetensors");
    candle_core::safetensors::save(&tensors, &file)
        .map_err(|e| Error::io(&file, std::io::Error::other(e)))
}

/// A byte-level BPE without merges: a token for each ASCII character, in the spelling that byte-level vocabularies have.
fn tokenizer() -> Value {
    const END_OF_TEXT: &str = "<|end_of_text|>";
    // Bytes that are not printable are spelled by the letters from U+0100 on, in order.
    let spelling = |byte: u8| match byte {
        b'!'..=b'~' => char::from(byte),
        0..=b' ' => char::from_u32(0x100 + u32::from(byte)).expect("a letter"),
        _ => char::from_u32(0x121).expect("a letter"),
    };
    let ids = 1..VOCABULARY as u8;
    let mut vocabulary: Map<String, Value> = ids
        .map(|byte| (spelling(byte).to_string(), byte.into()))
        .collect();
    vocabulary.insert(END_OF_TEXT.into(), 0.into());
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{
            "id": 0, "content": END_OF_TEXT, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        }],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": []
        }
    })
}

#[cfg(test)]
mod tests {
    use microgranite::sources::{self, Reference as Source};
    use microgranite::study::reference::{Arithmetic, Reference};

    use super::*;

    #[test]
    fn an_exported_folder_opens_as_the_same_model_with_the_same_ids() {
        let folder = tempfile::tempdir().unwrap();
        let model = Granite::new(3).unwrap();
        export(&model, folder.path()).unwrap();
        let source = Source::Folder(folder.path().into());
        let settings = sources::Settings::from_variables(|_| None, false);
        let checkpoint = sources::open(&source, &settings).unwrap();
        let text = "`Off with\nher head!' \u{7f}";
        let encoding = checkpoint.tokenizer.encode(text, false).unwrap();
        let ids: Vec<u32> = text.bytes().map(u32::from).collect();
        assert_eq!(encoding.get_ids(), ids);

        let reference = Reference::load(
            &model.config,
            checkpoint.tensors().unwrap(),
            Arithmetic::F32,
        );
        let expected = reference.unwrap().logits(&ids).unwrap();
        let found = model
            .logits_of(&ids, crate::model::Arithmetic::Float)
            .unwrap();
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            // Sums in a different order differ in the last bits.
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
    }
}
