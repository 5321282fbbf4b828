//! Converts a conversation to the ids of the prompt, with the model's own template.

use jiff::Timestamp;

use super::messages;
use crate::http::error_body::ApiError;
use crate::http::fields::invalid;
use crate::http::generate::prompt::encode_error;
use crate::text::Tokenizer;
use crate::text::chat::calls::CallSyntax;
use crate::text::chat::{ChatError, ChatTemplate, Conversation, Prompt};

/// Limits on the length of the text of a conversation.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// The field with the messages, for error messages.
    pub param: &'static str,
    /// The number of tokens in the context, which the prompt must fit in the end.
    pub context: usize,
    /// Text of up to this number of bytes is accepted even if it exceeds the context, because the prompt is then
    /// truncated, or only its tokens are counted.
    pub bytes: usize,
}

/// Tokenizes a conversation; the prompt has at least one id. A long conversation takes time, so this must be called
/// where blocking is allowed.
///
/// # Errors
/// When the template refuses the conversation, or its text is too long.
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
    let param = room.param;
    let refused = |problem| ApiError::ChatTemplate { param, problem };
    let longest_token = tokenizer.most_bytes(1).max(1);
    let most = room.context.max(room.bytes.div_ceil(longest_token));
    match template.encode(tokenizer, conversation, Timestamp::now(), most) {
        Ok(prompt) if prompt.ids.is_empty() => Err(refused("it renders to nothing".into())),
        Ok(prompt) => Ok(prompt),
        Err(ChatError::Template(problem)) => Err(match unreadable_call(template, conversation) {
            Some(at) if param == "messages" => messages::refused(at, messages::REFUSED_CALLS),
            Some(_) => invalid(
                param,
                "a list of items in which the arguments of calls are objects",
            ),
            None => refused(problem),
        }),
        Err(ChatError::Encode(problem)) => Err(encode_error(param, problem, room.context)),
    }
}

/// Returns the index of the first message with a call whose arguments are no object, if the template writes calls in
/// tags: then it writes the arguments one by one, and cannot write others. Clients have such arguments from answers that
/// were cut off.
fn unreadable_call(template: &ChatTemplate, conversation: &Conversation) -> Option<usize> {
    if template.calls() != Some(&CallSyntax::Xml) {
        return None;
    }
    let mut messages = conversation.messages.iter();
    messages.position(|message| message.calls.iter().any(|call| !call.has_object()))
}
