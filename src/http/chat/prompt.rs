//! A conversation → the ids of the prompt that the model's own template makes of it.

use jiff::Timestamp;

use crate::http::error_body::ApiError;
use crate::http::fields::invalid;
use crate::http::generate::prompt::encode_error;
use crate::text::Tokenizer;
use crate::text::chat::{ChatError, ChatTemplate, Conversation, Prompt};

/// How long the text of a conversation may be.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Tokens of the context, which it has to fit in the end.
    pub context: usize,
    /// Bytes that are read even if so many cannot fit: of a prompt that is then cut down, or whose tokens are counted.
    pub bytes: usize,
}

/// The prompt of a conversation, of at least one id. A long conversation takes a while, so call it where
/// blocking is fine.
///
/// # Errors
/// When the template does not take the conversation, or its text has no room.
pub fn encode(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    conversation: &Conversation,
    room: Room,
) -> Result<Prompt, ApiError> {
    if conversation.documents.is_some() && !template.mentions("documents") {
        let expected = "left out: this model's chat template has no place for documents";
        return Err(invalid("documents", expected));
    }
    let longest_token = tokenizer.most_bytes(1).max(1);
    let most = room.context.max(room.bytes.div_ceil(longest_token));
    match template.encode(tokenizer, conversation, Timestamp::now(), most) {
        Ok(prompt) if prompt.ids.is_empty() => {
            Err(ApiError::ChatTemplate("it renders to nothing".into()))
        }
        Ok(prompt) => Ok(prompt),
        Err(ChatError::Template(problem)) => Err(ApiError::ChatTemplate(problem)),
        Err(ChatError::Encode(problem)) => Err(encode_error("messages", problem, room.context)),
    }
}
