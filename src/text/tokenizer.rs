//! Text → token ids, and the bytes of every id.

use std::path::Path;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::{
    Model, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
};

use crate::error::{Error, Result};

/// A byte-level BPE tokenizer, the kind that every Granite and SmolLM checkpoint has.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The bytes of all tokens, one after another.
    bytes: Vec<u8>,
    /// Token `id` is `bytes[ends[id - 1]..ends[id]]`; ids without a token are empty.
    ends: Vec<u32>,
    /// Whether token `id` is special: control rather than text.
    special: Vec<bool>,
    longest: usize,
    /// Whether the tokens of a text contain all of its bytes, which is so unless the file asks for normalization.
    is_lossless: bool,
}

/// A token that is matched before the text is split, such as an end-of-turn token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedToken {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Whether it is control rather than text; such tokens are left out of answers.
    pub special: bool,
}

/// Why a text cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The text is too long to fit the context, however it is tokenized; it was not tokenized.
    #[error("the text has {bytes} bytes and at most {limit} can fit")]
    TooLong {
        /// Bytes of the text.
        bytes: usize,
        /// Bytes that the largest allowed number of tokens can hold.
        limit: usize,
    },
    /// Part of the text is covered by no token: the pattern that splits it gives up on very long runs of one kind of
    /// character.
    #[error("a run of characters is too long to be split")]
    TooUniform,
    /// The tokenizer failed, which is a defect of its file.
    #[error("the tokenizer failed: {0}")]
    Failed(String),
}

impl Tokenizer {
    /// Builds the table from ids to bytes for a tokenizer that was read from `file`.
    ///
    /// # Errors
    /// [`Error::BadModel`] naming `file` when the tokenizer is not byte-level: decoding token by token is exact only
    /// when every token stands for fixed bytes.
    pub fn new(mut inner: tokenizers::Tokenizer, file: &Path) -> Result<Self> {
        let byte_level = match inner.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => true,
            Some(DecoderWrapper::Sequence(all)) => all
                .get_decoders()
                .iter()
                .any(|one| matches!(one, DecoderWrapper::ByteLevel(_))),
            _ => false,
        };
        if !byte_level {
            let problem = "only byte-level tokenizers are supported (decoder `ByteLevel`)";
            return Err(Error::bad_model(file, "tokenizer decoder", problem));
        }
        // A file may ask for truncation or padding, which are meant for training and must not change prompts.
        inner
            .with_truncation(None)
            .map_err(|problem| Error::bad_model(file, "truncation", problem))?;
        inner.with_padding(None);

        let added = inner.get_added_tokens_decoder();
        let mut tokens: Vec<(u32, Vec<u8>)> = inner
            .get_vocab(false)
            .into_iter()
            .map(|(token, id)| (id, bytes_of(&token)))
            .chain(
                added
                    .iter()
                    .map(|(&id, token)| (id, token.content.clone().into_bytes())),
            )
            .collect();
        // The sort is stable: if an added token repeats an id of the vocabulary, the added one comes second and wins
        // below.
        tokens.sort_by_key(|token| token.0);
        let count = tokens.last().map_or(0, |last| last.0 as usize + 1);
        // Ids come from a file: a single huge one must not determine the size of a table. Real vocabularies have few
        // holes.
        if count > 4 * tokens.len() + 65_536 {
            let problem = format!("id {} in a vocabulary of {}", count - 1, tokens.len());
            return Err(Error::bad_model(file, "vocab", problem));
        }

        let mut by_id = vec![&[][..]; count];
        for (id, token) in &tokens {
            by_id[*id as usize] = token;
        }
        let longest = by_id.iter().map(|token| token.len()).max().unwrap_or(0);
        let bytes = by_id.concat();
        let ends = by_id
            .iter()
            .scan(0, |end, token| {
                *end += token.len() as u32;
                Some(*end)
            })
            .collect();
        let mut special = vec![false; count];
        for (&id, token) in &added {
            special[id as usize] = token.special;
        }
        Ok(Self {
            bytes,
            ends,
            special,
            longest,
            is_lossless: inner.get_normalizer().is_none()
                && !added.values().any(|token| token.lstrip || token.rstrip),
            inner,
        })
    }

    /// Checks that every id has one of the `rows` rows of the embedding: without a row a token cannot be computed.
    ///
    /// Added tokens may lack a row, because some fine-tunes name a padding token and never use it: a warning names
    /// them, and prompts with one are refused.
    ///
    /// # Errors
    /// [`Error::BadModel`] naming `file`, for an ordinary token without a row: the tokenizer is another model's.
    pub fn check_rows(&self, rows: usize, file: &Path) -> Result<()> {
        let added = self.inner.get_added_tokens_decoder();
        let beyond = (rows..self.vocab_size()).map(|id| id as u32);
        let mut beyond = beyond.filter(|&id| !self.bytes(id).is_empty()).peekable();
        let named = |id: u32| {
            let text = String::from_utf8_lossy(self.bytes(id)).into_owned();
            format!("token {text:?} has id {id}, and the embedding has {rows} rows (vocab_size)")
        };
        let Some(&first) = beyond.peek() else {
            return Ok(());
        };
        if let Some(id) = beyond.find(|id| !added.contains_key(id)) {
            let problem = format!("{}: is this another model's tokenizer?", named(id));
            return Err(Error::bad_model(file, "model.vocab", problem));
        }
        let file = file.display();
        tracing::warn!("{file}: {}; prompts that have it are refused", named(first));
        Ok(())
    }

    /// The ids of `text`, which must fit `max_tokens`.
    ///
    /// No token is added before or after. Special tokens written out in the text become their ids, as in every other
    /// server's raw completions: the caller controls the whole prompt here, including control tokens.
    ///
    /// Takes time in proportion to the text, so call it where blocking is allowed.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`] before any work, if even the longest tokens could not cover the text in `max_tokens`;
    /// [`EncodeError::TooUniform`] instead of ids for only a part of the text.
    pub fn encode(
        &self,
        text: &str,
        max_tokens: usize,
    ) -> std::result::Result<Vec<u32>, EncodeError> {
        self.check_length(text, max_tokens)?;
        // `encode_fast` skips the character offsets, which are not needed.
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|problem| EncodeError::Failed(problem.to_string()))?;
        self.check_cover(text, encoding.get_ids())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of `text` without special tokens: `<|end_of_text|>` is encoded as fifteen characters.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], except for the length.
    pub fn encode_text(&self, text: &str) -> std::result::Result<Vec<u32>, EncodeError> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let ids = self
            .steps_after_added_tokens(text)
            .map_err(|problem| EncodeError::Failed(problem.to_string()))?;
        self.check_cover(text, &ids)?;
        Ok(ids)
    }

    /// The crate's processing of text between added tokens.
    fn steps_after_added_tokens(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        let mut pieces = PreTokenizedString::from(text);
        if let Some(normalizer) = self.inner.get_normalizer() {
            pieces.normalize(|piece| normalizer.normalize(piece))?;
        }
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|piece| self.inner.get_model().tokenize(piece.get()))?;
        let pieces = pieces.get_splits(OffsetReferential::Original, OffsetType::None);
        let tokens = pieces
            .into_iter()
            .filter_map(|(_, _, tokens)| tokens.as_ref());
        Ok(tokens.flatten().map(|token| token.id).collect())
    }

    /// The largest number of bytes that `tokens` tokens can stand for.
    pub const fn most_bytes(&self, tokens: usize) -> usize {
        tokens.saturating_mul(self.longest)
    }

    /// Refuses, before any work, a text that cannot fit `max_tokens`.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`].
    pub const fn check_length(
        &self,
        text: &str,
        max_tokens: usize,
    ) -> std::result::Result<(), EncodeError> {
        let (bytes, limit) = (text.len(), self.most_bytes(max_tokens));
        if bytes > limit {
            return Err(EncodeError::TooLong { bytes, limit });
        }
        Ok(())
    }

    /// Checks that the ids cover the text. The regular expression that splits it has a budget, and beyond it the rest
    /// of the text is silently dropped.
    fn check_cover(&self, text: &str, ids: &[u32]) -> std::result::Result<(), EncodeError> {
        let covered: usize = ids.iter().map(|&id| self.bytes(id).len()).sum();
        if self.is_lossless && covered < text.len() {
            return Err(EncodeError::TooUniform);
        }
        Ok(())
    }

    /// The tokens that are matched before the text is split, by id.
    pub fn added_tokens(&self) -> Vec<AddedToken> {
        let added = self.inner.get_added_tokens_decoder();
        let mut added: Vec<AddedToken> = added
            .into_iter()
            .map(|(id, token)| AddedToken {
                id,
                special: token.special,
                text: token.content,
            })
            .filter(|token| !token.text.is_empty())
            .collect();
        added.sort_by_key(|token| token.id);
        added
    }

    /// The greatest id plus one.
    pub const fn vocab_size(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a token; empty for ids without a token. They may be incomplete characters.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else {
            return &[];
        };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..end as usize]
    }

    /// The id of a token by its name, such as `<|fim_prefix|>`.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether a token is control rather than text; such tokens are left out of answers.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }
}

/// The bytes of a vocabulary entry. An entry with a character outside the byte-level alphabet stands for its own UTF-8.
fn bytes_of(token: &str) -> Vec<u8> {
    token
        .chars()
        .map(byte_of)
        .collect::<Option<Vec<u8>>>()
        .unwrap_or_else(|| token.as_bytes().to_vec())
}

/// Inverts the byte-level alphabet. GPT-2 maps printable bytes to themselves and the other 68, in order, to the
/// characters from U+0100 on, so that no vocabulary entry contains white space or control characters.
fn byte_of(character: char) -> Option<u8> {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(character) {
        code @ 0..0x100 => Some(code as u8).filter(|&byte| is_printable(byte)),
        code => (0..=255)
            .filter(|&byte| !is_printable(byte))
            .nth(code as usize - 0x100),
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::*;

    #[test]
    fn the_alphabet_is_the_one_the_tokenizers_crate_uses() {
        let mut bytes: Vec<u8> = ByteLevel::alphabet()
            .into_iter()
            .map(|character| byte_of(character).expect("every character stands for a byte"))
            .collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of('字'), None);
    }

    #[test]
    fn a_tokenizer_that_is_not_byte_level_is_refused_with_the_file_named() {
        let inner = tokenizers::Tokenizer::new(tokenizers::models::bpe::BPE::default());
        let Err(error) = Tokenizer::new(inner, Path::new("model/tokenizer.json")) else {
            panic!("accepted");
        };
        assert_eq!(
            error.to_string(),
            "model/tokenizer.json: tokenizer decoder: only byte-level tokenizers are supported (decoder `ByteLevel`)"
        );
    }

    #[test]
    fn an_ordinary_token_without_a_row_is_refused_and_an_added_one_is_not() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let file = fixtures.join("granite-3-tiny/tokenizer.json");
        let mut inner = tokenizers::Tokenizer::from_file(&file).unwrap();
        inner
            .add_tokens([tokenizers::AddedToken::from("acme", false)])
            .unwrap();
        let tokenizer = Tokenizer::new(inner, &file).unwrap();
        assert_eq!(tokenizer.id("acme"), Some(320));
        tokenizer.check_rows(320, &file).unwrap();
        let refused = tokenizer.check_rows(300, &file).unwrap_err();
        assert_eq!(refused.exit_code(), 65);
        let line = refused.to_string();
        for part in [
            "tokenizer.json: model.vocab: token",
            "has id 300",
            "300 rows",
        ] {
            assert!(line.contains(part), "{line}");
        }
    }

    #[test]
    fn text_that_the_pattern_cannot_split_is_refused_not_lost() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let file = fixtures.join("granite-4-dense-tiny/tokenizer.json");
        let mut inner = tokenizers::Tokenizer::from_file(&file).unwrap();
        // The pattern of Granite 4 and many others.
        let pattern = r"\s+(?!\S)|\s+|\S+";
        let split = tokenizers::pre_tokenizers::split::Split::new(
            tokenizers::pre_tokenizers::split::SplitPattern::Regex(pattern.into()),
            tokenizers::SplitDelimiterBehavior::Removed,
            true,
        );
        let bytes = ByteLevel::new(false, true, false);
        let sequence = tokenizers::pre_tokenizers::sequence::Sequence::new(vec![
            split.unwrap().into(),
            bytes.into(),
        ]);
        inner.with_pre_tokenizer(Some(sequence));
        let tokenizer = Tokenizer::new(inner, &file).unwrap();
        let spaces = |count| tokenizer.encode(&" ".repeat(count), usize::MAX);
        assert_eq!(spaces(1000).unwrap().len(), 1000);
        assert!(matches!(spaces(1 << 20), Err(EncodeError::TooUniform)));
    }
}
