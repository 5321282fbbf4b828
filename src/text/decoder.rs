//! Token ids → text, as they arrive.

use std::sync::Arc;

use super::Tokenizer;

/// Turns one generation's tokens into text, holding back bytes that do not yet form a character.
///
/// Wherever the token boundaries fall, the concatenated pieces equal the lossy decoding of all bytes.
#[derive(Clone)]
pub struct Decoder {
    tokenizer: Arc<Tokenizer>,
    /// The beginning of an incomplete character: at most three bytes between calls.
    pending: Vec<u8>,
}

impl Decoder {
    /// A decoder at the start of a text.
    pub const fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            tokenizer,
            pending: Vec::new(),
        }
    }

    /// The text that `token` completes: often a word, sometimes nothing. Special tokens produce no text.
    pub fn push(&mut self, token: u32) -> String {
        if self.tokenizer.is_special(token) {
            return String::new();
        }
        self.push_literally(token)
    }

    /// The same, but special tokens are written out. For prompts, which may contain them literally.
    pub fn push_literally(&mut self, token: u32) -> String {
        self.pending.extend_from_slice(self.tokenizer.bytes(token));
        let mut text = String::new();
        let mut rest = &self.pending[..];
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => error,
            };
            let (valid, after) = rest.split_at(error.valid_up_to());
            text.push_str(&String::from_utf8_lossy(valid));
            rest = after;
            match error.error_len() {
                // The bytes so far are the beginning of a character.
                None => break,
                Some(length) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[length..];
                }
            }
        }
        let decoded = self.pending.len() - rest.len();
        self.pending.drain(..decoded);
        text
    }

    /// Ends the text: an incomplete character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn tokenizer() -> Arc<Tokenizer> {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let file = fixtures.join("granite-3-tiny/tokenizer.json");
        let inner = tokenizers::Tokenizer::from_file(&file).unwrap();
        Arc::new(Tokenizer::new(inner, &file).unwrap())
    }

    #[test]
    fn a_character_appears_with_its_last_byte() {
        let tokenizer = tokenizer();
        let mut decoder = Decoder::new(Arc::clone(&tokenizer));
        let ids = tokenizer.encode("é😀!", 100).unwrap();
        let pieces: Vec<String> = ids.iter().map(|&id| decoder.push(id)).collect();
        assert_eq!(pieces, ["", "é", "", "", "", "😀", "!"]);
        assert_eq!(decoder.push(ids[0]) + &decoder.finish(), "\u{FFFD}");
    }

    proptest! {
        #[test]
        fn the_pieces_are_the_lossy_decoding_of_all_bytes(ids in prop::collection::vec(0_u32..330, 0..60)) {
            let tokenizer = tokenizer();
            let mut decoder = Decoder::new(Arc::clone(&tokenizer));
            let mut text: String = ids.iter().map(|&id| decoder.push(id)).collect();
            text += &decoder.finish();
            let of_text = ids.iter().filter(|&&id| !tokenizer.is_special(id));
            let bytes: Vec<u8> = of_text.flat_map(|&id| tokenizer.bytes(id)).copied().collect();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
