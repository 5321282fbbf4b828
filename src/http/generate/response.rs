//! What the answers of all routes that generate have in common: how they are written, and what they count.

use std::sync::Arc;

use axum::response::Response;
use serde::{Serialize, Serializer};

use super::answer::Piece;
use crate::http::app::{ServedModel, unix_seconds};
use crate::text::Tokenizer;

/// How a route writes its answers: in events, one for each piece that completes some text, or in one body.
pub trait Writer: Send + 'static {
    /// The events for a piece, made with [`event`](super::streaming::event); empty if it has nothing to say yet.
    fn piece(&mut self, piece: &Piece) -> Vec<u8>;

    /// What comes between the last piece and `[DONE]`.
    fn last(&mut self) -> Vec<u8>;

    /// All answers in one body, each put together from its pieces.
    fn whole(self, answers: Vec<Piece>) -> Response;
}

/// What all parts of a response say of themselves.
pub struct Head {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    /// Names tokens.
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
}

impl Head {
    /// A response of `model` with an id of its own, which begins with `kind`.
    pub fn new(kind: &str, model: &ServedModel) -> Self {
        Self {
            id: format!("{kind}-{:032x}", rand::random::<u128>()),
            created: unix_seconds(),
            model: model.name.clone(),
            fingerprint: model.fingerprint.clone(),
            tokenizer: Arc::clone(&model.tokenizer),
        }
    }

    /// One part of the response; `object` is OpenAI's name for it.
    pub fn body<C>(&self, object: &'static str, choices: Vec<C>, usage: UsageField) -> Body<'_, C> {
        Body {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            choices,
            usage,
        }
    }
}

/// Tokens so far, as `usage` counts them.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    prompt_tokens: usize,
    completion_tokens: usize,
    cached_tokens: usize,
    /// Of thoughts; absent for a model that has none.
    reasoning_tokens: Option<usize>,
    /// Answers to each prompt.
    answers: usize,
}

impl Counts {
    /// Of prompts of `prompt_tokens` tokens together, with so many `answers` to each.
    pub const fn new(prompt_tokens: usize, answers: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens: 0,
            cached_tokens: 0,
            reasoning_tokens: None,
            answers,
        }
    }

    /// Counts the tokens of thoughts too.
    pub const fn count_thoughts(&mut self) {
        self.reasoning_tokens = Some(0);
    }

    /// Counts what was generated for `piece`.
    pub fn add_generated(&mut self, piece: &Piece) {
        self.completion_tokens += piece.generated();
        if let Some(count) = &mut self.reasoning_tokens {
            *count += piece.thought_tokens;
        }
    }

    /// Counts what `piece` says was found in the cache. A prompt counts once, however many answers it has.
    pub fn add_cached(&mut self, piece: &Piece) {
        if piece.index.is_multiple_of(self.answers) {
            self.cached_tokens += piece.cached_tokens;
        }
    }

    /// The counts as a response has them.
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
    /// `null`: the counts come later.
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
    /// Of all prompts, each counted once.
    pub prompt_tokens: usize,
    /// Of all answers, those included that `best_of` dropped, and the ids that ended them.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// More about the prompts.
    pub prompt_tokens_details: PromptTokensDetails,
    /// More about the answers, for models that think.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_tokens_details: Option<CompletionTokensDetails>,
}

/// What tokens of answers were spent on.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct CompletionTokensDetails {
    /// Thoughts.
    pub reasoning_tokens: usize,
}

/// What became of prompt tokens.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct PromptTokensDetails {
    /// Taken from the cache instead of being computed.
    pub cached_tokens: usize,
}
