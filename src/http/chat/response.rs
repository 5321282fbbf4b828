//! Answers → messages of the assistant: text, tool calls and log-probabilities, whole or in events.

use std::mem;
use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::engine::Score;
use crate::http::answer::{Finish, Piece, Pieces, PlacedToken, StopReason};
use crate::http::error_body::ApiError;
use crate::http::logprobs;
use crate::http::streaming::{EventShape, event};
use crate::http::wire::{StreamOptions, Usage};
use crate::text::Tokenizer;
use crate::text::chat::calls::{CallParser, CallSyntax, Part};

/// What all parts of a response have in common, and what becomes of its answers.
pub struct Head {
    /// `chatcmpl-…`, the same in all events of a stream.
    pub id: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// The served name.
    pub model: String,
    /// See [`crate::http::ServedModel::fingerprint`].
    pub fingerprint: String,
    /// Of the rendered conversation.
    pub prompt_tokens: usize,
    /// Names tokens.
    pub tokenizer: Arc<Tokenizer>,
    /// Whether log-probabilities were asked for.
    pub with_logprobs: bool,
    /// How calls are written, if there may be any.
    pub calls: Option<CallSyntax>,
    /// Whether the prompt ends with the start of a call.
    pub must_call: bool,
    /// Whether more than the first call counts.
    pub parallel_calls: bool,
}

/// A whole answer, or one event of a stream.
#[derive(Serialize)]
struct Completion<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: Message,
    logprobs: Option<Logprobs>,
    finish_reason: &'static str,
    stop_reason: Option<StopReason>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    /// `null` when there are only calls.
    content: Option<String>,
    refusal: (),
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopReason>,
}

#[derive(Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

#[derive(Serialize)]
struct ToolCall {
    /// Its place among the calls of the answer; only in streams, which put calls together by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    id: String,
    r#type: &'static str,
    function: Function,
}

#[derive(Serialize)]
struct Function {
    name: String,
    arguments: String,
}

/// Log-probabilities in the shape of OpenAI's chat: one entry for each token.
#[derive(Serialize)]
struct Logprobs {
    content: Vec<TokenLogprob>,
    refusal: (),
}

#[derive(Serialize)]
struct TokenLogprob {
    #[serde(flatten)]
    token: Likely,
    top_logprobs: Vec<Likely>,
}

#[derive(Serialize)]
struct Likely {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// One answer in the making: its text so far undecided, and what has been sent of it.
struct Turn {
    parser: Option<CallParser>,
    parallel_calls: bool,
    calls: usize,
    has_begun: bool,
    /// Log-probabilities of tokens whose text has not been sent.
    logprobs: Vec<TokenLogprob>,
}

impl Turn {
    fn new(head: &Head) -> Self {
        let parser = head.calls.clone();
        Self {
            parser: parser.map(|syntax| CallParser::new(syntax, head.must_call)),
            parallel_calls: head.parallel_calls,
            calls: 0,
            has_begun: false,
            logprobs: Vec::new(),
        }
    }

    /// The text and the calls that a piece decides.
    fn push(&mut self, text: &str, is_last: bool) -> (String, Vec<ToolCall>) {
        let Some(parser) = &mut self.parser else {
            return (text.to_owned(), Vec::new());
        };
        let mut parts = parser.push(text);
        if is_last {
            parts.extend(parser.finish());
        }
        let (mut text, mut calls) = (String::new(), Vec::new());
        for part in parts {
            match part {
                Part::Text(more) => text += &more,
                Part::Call { .. } if self.calls > 0 && !self.parallel_calls => {}
                Part::Call { name, arguments } => {
                    calls.push(ToolCall {
                        index: Some(self.calls),
                        id: format!("call_{:024x}", rand::random::<u128>() >> 32),
                        r#type: "function",
                        function: Function { name, arguments },
                    });
                    self.calls += 1;
                }
            }
        }
        (text, calls)
    }

    /// OpenAI's word for how the answer ended.
    const fn reason(&self, finish: &Finish) -> &'static str {
        match finish {
            Finish::Stop(_) if self.calls > 0 => "tool_calls",
            finish => finish.reason(),
        }
    }
}

/// The whole answer in one body.
///
/// # Errors
/// When a generation fails or is cut off: half an answer is none.
pub async fn whole(pieces: Pieces, head: Head) -> Result<Response, ApiError> {
    let answers = pieces.collect().await?;
    let generated = answers.iter().map(|answer| answer.tokens.len()).sum();
    // The prompt counts once, however many answers it has.
    let cached = answers.first().map_or(0, |answer| answer.cached_tokens);
    let choices = answers.into_iter().map(|answer| {
        let mut turn = Turn::new(&head);
        let (text, mut tool_calls) = turn.push(&answer.text, true);
        for call in &mut tool_calls {
            call.index = None;
        }
        let finish = answer.finish.unwrap_or(Finish::Stop(None));
        Choice {
            index: answer.index,
            message: Message {
                role: "assistant",
                content: (!text.is_empty() || tool_calls.is_empty()).then_some(text),
                refusal: (),
                tool_calls,
            },
            logprobs: head.logprobs(&answer.tokens).map(Logprobs::of),
            finish_reason: turn.reason(&finish),
            stop_reason: finish.stop_reason(),
        }
    });
    let choices = choices.collect();
    let usage = Usage::new(head.prompt_tokens, generated, cached);
    let body = head.completion("chat.completion", choices, Some(Some(usage)));
    Ok(Json(body).into_response())
}

/// How chat writes its events.
pub struct Chunks {
    head: Head,
    turns: Vec<Turn>,
    options: StreamOptions,
    generated: usize,
    cached: usize,
}

impl Chunks {
    /// For `n` answers.
    pub fn new(head: Head, n: usize, options: StreamOptions) -> Self {
        Self {
            turns: (0..n).map(|_| Turn::new(&head)).collect(),
            head,
            options,
            generated: 0,
            cached: 0,
        }
    }

    fn usage(&self) -> Usage {
        Usage::new(self.head.prompt_tokens, self.generated, self.cached)
    }

    fn chunk(&self, choice: ChunkChoice) -> Vec<u8> {
        let usage = match (self.options.continuous_usage, self.options.include_usage) {
            (true, _) => Some(Some(self.usage())),
            // OpenAI: with `include_usage`, every event has the field, null in all but the last.
            (false, true) => Some(None),
            (false, false) => None,
        };
        event(
            &self
                .head
                .completion("chat.completion.chunk", vec![choice], usage),
        )
    }
}

impl EventShape for Chunks {
    fn piece(&mut self, piece: &Piece) -> Vec<u8> {
        self.generated += piece.tokens.len();
        if piece.index == 0 {
            self.cached += piece.cached_tokens;
        }
        let index = piece.index;
        let turn = &mut self.turns[index];
        let (text, tool_calls) = turn.push(&piece.text, piece.finish.is_some());
        turn.logprobs
            .extend(self.head.logprobs(&piece.tokens).into_iter().flatten());
        let delta = Delta {
            content: (!text.is_empty()).then_some(text),
            tool_calls,
            ..Delta::default()
        };
        let mut events = Vec::new();
        let choice = |delta, logprobs, finish_reason, stop_reason| ChunkChoice {
            index,
            delta,
            logprobs,
            finish_reason,
            stop_reason,
        };
        if !mem::replace(&mut turn.has_begun, true) {
            let first = Delta {
                role: Some("assistant"),
                content: Some(String::new()),
                ..Delta::default()
            };
            events.extend(self.chunk(choice(first, None, None, None)));
        }
        let turn = &mut self.turns[index];
        let is_last = piece.finish.is_some();
        let has_delta = delta.content.is_some() || !delta.tool_calls.is_empty();
        if has_delta || is_last && !turn.logprobs.is_empty() {
            let scored = mem::take(&mut turn.logprobs);
            let logprobs = (!scored.is_empty()).then(|| Logprobs::of(scored));
            events.extend(self.chunk(choice(delta, logprobs, None, None)));
        }
        if let Some(finish) = &piece.finish {
            let reason = self.turns[index].reason(finish);
            let end = choice(Delta::default(), None, Some(reason), finish.stop_reason());
            events.extend(self.chunk(end));
        }
        events
    }

    fn last(&mut self) -> Vec<u8> {
        if !self.options.include_usage {
            return Vec::new();
        }
        let none: Vec<ChunkChoice> = Vec::new();
        let usage = Some(Some(self.usage()));
        event(&self.head.completion("chat.completion.chunk", none, usage))
    }
}

impl Head {
    fn completion<C>(
        &self,
        object: &'static str,
        choices: Vec<C>,
        usage: Option<Option<Usage>>,
    ) -> Completion<'_, C> {
        Completion {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            choices,
            usage,
        }
    }

    fn logprobs(&self, tokens: &[PlacedToken]) -> Option<Vec<TokenLogprob>> {
        let scored = tokens.iter().filter_map(|token| token.score.as_ref());
        let all = scored.map(|score: &Score| TokenLogprob {
            token: self.likely(score.token),
            top_logprobs: score.top.iter().map(|&one| self.likely(one)).collect(),
        });
        self.with_logprobs.then(|| all.collect())
    }

    fn likely(&self, (id, logprob): (u32, f32)) -> Likely {
        Likely {
            token: logprobs::name(&self.tokenizer, id),
            logprob: logprob.max(logprobs::LEAST),
            bytes: self.tokenizer.bytes(id).to_vec(),
        }
    }
}

impl Logprobs {
    const fn of(content: Vec<TokenLogprob>) -> Self {
        Self {
            content,
            refusal: (),
        }
    }
}
