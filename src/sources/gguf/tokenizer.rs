//! The tokenizer in a GGUF file's metadata, rebuilt as the Hugging Face tokenizer it was made from.
//!
//! GGUF keeps tokens, merges and the *name* of a pre-tokenizer; what that name means is written here. Where llama.cpp's
//! reading and the original differ, the original is followed, since the model was trained with it.

use std::path::Path;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

use super::header::Header;
use crate::error::{Error, Result};

/// The split of cl100k_base, which Granite 4 and DBRX share.
const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

/// Most tokens, and most merges, that are taken in: four times the largest vocabulary published, because an entry costs
/// more memory here than in the file.
const MOST: usize = 1 << 20;

/// Values of `tokenizer.ggml.token_type` for tokens that are matched in text before it is split.
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
    let pre = header.text(PRE)?.ok_or_else(|| header.missing(PRE))?;
    let Some(pre_tokenizer) = pre_tokenizer(pre) else {
        let problem =
            format!("{pre:?} is not supported, only gpt-2, smollm, refact, dbrx and llama-bpe");
        return Err(bad(PRE, problem));
    };

    let tokens = required(TOKENS)?;
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

    // Llama 3 has tokens that no sequence of its merges leads to; a word that is a token is taken whole.
    let ignore_merges = pre == "llama-bpe";
    let bpe = BPE::builder()
        .vocab_and_merges(ids, merges)
        .ignore_merges(ignore_merges);
    let bpe = bpe.build().map_err(|e| bad(MERGES, e.to_string()))?;
    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
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

/// What the name of a pre-tokenizer stands for.
fn pre_tokenizer(name: &str) -> Option<PreTokenizerWrapper> {
    // `true` last: also split as GPT-2 did, into words, numbers, punctuation and space.
    let gpt2 = ByteLevel::new(false, true, true);
    let bytes_only = ByteLevel::new(false, true, false);
    Some(match name {
        // Granite 3 files carry the name `refact`, for which llama.cpp splits off every digit first. Granite's own
        // tokenizer does not, and the two differ on numerals such as `½`.
        "gpt-2" | "refact" => gpt2.into(),
        "smollm" => Sequence::new(vec![Digits::new(true).into(), gpt2.into()]).into(),
        // Llama 3 and cl100k_base split alike; only `ignore_merges` differs.
        "dbrx" | "llama-bpe" => {
            let pattern = SplitPattern::Regex(CL100K.into());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).ok()?;
            Sequence::new(vec![split.into(), bytes_only.into()]).into()
        }
        _ => return None,
    })
}
