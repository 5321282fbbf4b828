//! Rebuilds the original Hugging Face tokenizer from a GGUF file's metadata.
//!
//! GGUF stores tokens, merges and the *name* of a pre-tokenizer; its meaning is defined here. Where llama.cpp differs
//! from the original tokenizer, this follows the original, since the model was trained with it.

use std::path::Path;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use super::header::Header;
use super::pre_tokenizer::{PreTokenizer, of_granite, of_label};
use crate::error::{Error, Result};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

/// The largest number of tokens, and of merges: four times the largest published vocabulary, because an entry takes
/// more memory here than in the file.
const MOST: usize = 1 << 20;

/// Values of `tokenizer.ggml.token_type` for tokens that are matched before the text is split.
const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;

/// Builds the tokenizer. It never adds a token of its own, so prompts start without a beginning-of-text token.
///
/// # Errors
/// [`Error::BadModel`] naming the metadata key.
pub fn build(file: &Path, header: &Header<'_>) -> Result<Tokenizer> {
    let bad = |key: &str, problem: String| Error::bad_model(file, key, problem);
    let required = |key: &str| {
        let texts = header.texts(key)?.ok_or_else(|| header.missing(key))?;
        if texts.len() > MOST {
            return Err(bad(
                key,
                format!("{} entries, more than the {MOST} we accept", texts.len()),
            ));
        }
        Ok(texts)
    };
    match header.text(MODEL)?.ok_or_else(|| header.missing(MODEL))? {
        "gpt2" => {}
        other => {
            return Err(bad(
                MODEL,
                format!("{other:?} is not supported, only gpt2 (byte-level BPE)"),
            ));
        }
    }
    let tokens = required(TOKENS)?;
    let PreTokenizer {
        split,
        ignore_merges,
    } = pre_tokenizer(file, header, &tokens)?;
    let mut ids = Vocab::default();
    for (id, token) in (0u32..).zip(&tokens) {
        if let Some(earlier) = ids.insert((*token).to_owned(), id) {
            return Err(bad(
                TOKENS,
                format!("tokens {earlier} and {id} are the same text"),
            ));
        }
    }
    let types = header
        .counts(TOKEN_TYPE)?
        .unwrap_or_else(|| vec![1; tokens.len()]);
    if types.len() != tokens.len() {
        let problem = format!("{} types for {} tokens", types.len(), tokens.len());
        return Err(bad(TOKEN_TYPE, problem));
    }
    let pair = |merge: &str| {
        let pair = merge
            .split_once(' ')
            .map(|(a, b)| (a.to_owned(), b.to_owned()));
        pair.ok_or_else(|| bad(MERGES, format!("{merge:?} is not two tokens")))
    };
    let merges = required(MERGES)?
        .into_iter()
        .map(pair)
        .collect::<Result<Vec<_>>>()?;

    let bpe = BPE::builder()
        .vocab_and_merges(ids, merges)
        .ignore_merges(ignore_merges);
    let bpe = bpe.build().map_err(|e| bad(MERGES, e.to_string()))?;
    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(split));
    tokenizer.with_decoder(Some(ByteLevel::new(true, true, true)));

    let matched_in_text = tokens.iter().zip(types).filter_map(|(token, kind)| {
        let special = kind == CONTROL;
        let matched = (special || kind == USER_DEFINED) && !token.is_empty();
        matched.then(|| AddedToken::from(*token, special).normalized(false))
    });
    let added = tokenizer.add_tokens(matched_in_text);
    added.map_err(|e| bad(TOKEN_TYPE, e.to_string()))?;
    Ok(tokenizer)
}

/// The pre-tokenizer, by its label. Converters label Granites inconsistently or not at all, so for those the vocabulary
/// decides.
fn pre_tokenizer(file: &Path, header: &Header<'_>, tokens: &[&str]) -> Result<PreTokenizer> {
    let label = header.text(PRE)?;
    if let Some(found) = label.and_then(of_label) {
        return Ok(found);
    }
    let architecture = header.text("general.architecture")?;
    if architecture.is_some_and(|name| name.starts_with("granite")) {
        let (split, family) = of_granite(tokens);
        tracing::warn!(
            "{PRE}: {} is not known here; text is split as by {family}",
            label.map_or("an absent label".into(), |label| format!("{label:?}"))
        );
        return Ok(split);
    }
    let label = label.ok_or_else(|| header.missing(PRE))?;
    let problem = format!(
        "{label:?} is not known here, so text cannot be split as the model expects; take the model's safetensors"
    );
    Err(Error::bad_model(file, PRE, problem))
}
