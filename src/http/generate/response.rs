//! The common parts of the responses of all generating routes: how they are written, and their token counts.

use std::sync::Arc;

use axum::response::Response;
use serde::{Serialize, Serializer};

use super::answer::Piece;
use crate::http::app::{ServedModel, unix_seconds};
use crate::http::error_body::ApiError;
use crate::http::receipt::Receipt;
use crate::text::Tokenizer;

/// How a route writes its answers: as events, one for each piece that completes some text, or in one body.
pub trait Writer: Send + 'static {
    /// The events for a piece, made with [`event`](super::streaming::event); empty if the piece adds nothing yet.
    fn piece(&mut self, piece: &Piece) -> Vec<u8>;

    /// The last events of a complete stream, with the `receipt` if there is a place for it.
    fn last(&mut self, receipt: Option<Receipt>) -> Vec<u8>;

    /// The last events of a stream that fails.
    fn failed(&mut self, error: &ApiError) -> Vec<u8>;

    /// What a stream has every few seconds while no token comes. A comment by default, which clients skip.
    fn idle(&self) -> &'static [u8] {
        b":\n\n"
    }

    /// Bytes that the writer holds of a stream so far and that its last events will take.
    fn kept_bytes(&self) -> usize {
        0
    }

    /// The response with all answers in one body, each joined from its pieces, and with the `receipt`.
    fn whole(self, answers: Vec<Piece>, receipt: Option<Receipt>) -> Response;
}

/// The fields that all events of a response share.
pub struct Head {
    /// A new id.
    pub id: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// The name of the model.
    pub model: String,
    fingerprint: String,
    /// Gives the names of tokens.
    pub tokenizer: Arc<Tokenizer>,
}

/// A whole answer, or one event of a stream.
#[derive(Serialize)]
pub struct Body<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "UsageField::is_absent")]
    usage: UsageField,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt: Option<Receipt>,
}

impl Head {
    /// The head of a response by `model`, with a new id that begins with `kind`.
    pub fn new(kind: &str, model: &ServedModel) -> Self {
        Self {
            id: new_id(kind),
            created: unix_seconds(),
            model: model.name.clone(),
            fingerprint: model.fingerprint.clone(),
            tokenizer: Arc::clone(&model.tokenizer),
        }
    }

    /// The body of the response or of one event; `object` is OpenAI's name for its type.
    pub fn body<C>(&self, object: &'static str, choices: Vec<C>, usage: UsageField) -> Body<'_, C> {
        Body {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            choices,
            usage,
            receipt: None,
        }
    }
}

impl<C> Body<'_, C> {
    /// The same with a receipt.
    #[must_use]
    pub const fn with_receipt(mut self, receipt: Option<Receipt>) -> Self {
        self.receipt = receipt;
        self
    }
}

/// A new id that begins with `kind`.
pub fn new_id(kind: &str) -> String {
    format!("{kind}{:032x}", rand::random::<u128>())
}

/// Token counts so far, for `usage`.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    prompt_tokens: usize,
    completion_tokens: usize,
    cached_tokens: usize,
    /// Tokens of thoughts; `None` for a model that does not think.
    reasoning_tokens: Option<usize>,
    /// Answers to each prompt.
    answers: usize,
}

impl Counts {
    /// Counts for prompts of `prompt_tokens` tokens together, with `answers` answers to each.
    pub const fn new(prompt_tokens: usize, answers: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens: 0,
            cached_tokens: 0,
            reasoning_tokens: None,
            answers,
        }
    }

    /// Also counts the tokens of thoughts, from now on.
    pub const fn count_thoughts(&mut self) {
        self.reasoning_tokens = Some(0);
    }

    /// Adds the tokens that were generated for `piece`.
    pub fn add_generated(&mut self, piece: &Piece) {
        self.completion_tokens += piece.generated();
        if let Some(count) = &mut self.reasoning_tokens {
            *count += piece.thought_tokens;
        }
    }

    /// Adds the tokens of `piece` that were found in the prefix cache. A prompt counts once, however many answers it
    /// has.
    pub fn add_cached(&mut self, piece: &Piece) {
        if piece.index.is_multiple_of(self.answers) {
            self.cached_tokens += piece.cached_tokens;
        }
    }

    /// The counts as the field `usage`.
    pub fn usage(&self) -> Usage {
        let details = |reasoning_tokens| CompletionTokensDetails { reasoning_tokens };
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            total_tokens: self.prompt_tokens + self.completion_tokens,
            prompt_tokens_details: PromptTokensDetails {
                cached_tokens: self.cached_tokens,
            },
            completion_tokens_details: self.reasoning_tokens.map(details),
        }
    }
}

/// The field `usage` of a response or an event.
#[derive(Debug, Clone, Copy)]
pub enum UsageField {
    /// Left out.
    Absent,
    /// `null`: a later event has the counts.
    Null,
    /// The counts.
    Counts(Usage),
}

impl UsageField {
    /// Whether the field is left out.
    pub const fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

impl Serialize for UsageField {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Absent | Self::Null => serializer.serialize_none(),
            Self::Counts(usage) => usage.serialize(serializer),
        }
    }
}

/// Token counts of a request.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Usage {
    /// Tokens of all prompts, each prompt counted once.
    pub prompt_tokens: usize,
    /// Tokens of all answers, including those that `best_of` drops, and the ids that ended them.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// More about the prompts.
    pub prompt_tokens_details: PromptTokensDetails,
    /// Details about the answers, for models that think.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_tokens_details: Option<CompletionTokensDetails>,
}

/// Details about the tokens of answers.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct CompletionTokensDetails {
    /// Tokens of thoughts.
    pub reasoning_tokens: usize,
}

/// Details about the prompt tokens.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct PromptTokensDetails {
    /// Tokens that were found in the prefix cache instead of being computed.
    pub cached_tokens: usize,
}
