//! Fill in the middle: the tokens around a prompt whose answer stands between the prompt and a suffix.

use crate::http::error_body::ApiError;
use crate::http::generate::prompt;
use crate::text::Tokenizer;

/// The tokens before and after a prompt.
pub struct Middle {
    prefix: u32,
    suffix: Vec<u32>,
}

impl Middle {
    /// The tokens for `suffix`.
    ///
    /// # Errors
    /// When the model has no such tokens, or the suffix does not fit `context`.
    pub fn new(tokenizer: &Tokenizer, suffix: &str, context: usize) -> Result<Self, ApiError> {
        // The spellings of Granite 3 and Granite 4.
        let find = |name: &str| {
            let spelled = [format!("<fim_{name}>"), format!("<|fim_{name}|>")];
            spelled.iter().find_map(|token| tokenizer.id(token))
        };
        let (Some(prefix), Some(before), Some(middle)) =
            (find("prefix"), find("suffix"), find("middle"))
        else {
            let neutral = "this model has no tokens for filling in the middle, so leave it out";
            return Err(ApiError::Unsupported {
                param: "suffix",
                neutral,
            });
        };
        let text = prompt::encode(tokenizer, "suffix", suffix, context)?;
        let suffix = [vec![before], text, vec![middle]].concat();
        Ok(Self { prefix, suffix })
    }

    /// `prompt` with the tokens that make the model write the text between it and the suffix.
    pub fn surround(&self, prompt: Vec<u32>) -> Vec<u32> {
        [vec![self.prefix], prompt, self.suffix.clone()].concat()
    }
}
