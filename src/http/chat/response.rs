//! Answers → messages of the assistant: text, tool calls and log-probabilities, whole or in events.

use std::mem;
use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::request::ChatRequest;
use crate::engine::Score;
use crate::http::answer::{Finish, Piece, Pieces, PlacedToken, StopReason};
use crate::http::error_body::ApiError;
use crate::http::logprobs::{self, PromptLogprobs};
use crate::http::streaming::{EventShape, event};
use crate::http::wire::{StreamOptions, Usage, UsageField};
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
    /// What was asked for.
    pub request: Arc<ChatRequest>,
    /// How calls are written, if there may be any.
    pub calls: Option<CallSyntax>,
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
    #[serde(skip_serializing_if = "UsageField::is_absent")]
    usage: UsageField,
    #[serde(flatten)]
    prompt: AboutPrompt,
}

/// What was asked for about the prompt, which all answers have in common.
#[derive(Default, Serialize)]
struct AboutPrompt {
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: Message,
    logprobs: Option<Logprobs>,
    finish_reason: &'static str,
    stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
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
    /// Log-probabilities and ids of tokens whose text has not been sent.
    logprobs: Vec<TokenLogprob>,
    token_ids: Vec<u32>,
}

impl Turn {
    fn new(head: &Head) -> Self {
        let parser = head.calls.clone();
        Self {
            parser: parser.map(|syntax| CallParser::new(syntax, head.request.must_call)),
            parallel_calls: head.request.parallel_calls,
            calls: 0,
            has_begun: false,
            logprobs: Vec::new(),
            token_ids: Vec::new(),
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
    let generated = answers.iter().map(Piece::generated).sum();
    // The prompt counts once, however many answers it has.
    let cached = answers.first().map_or(0, |answer| answer.cached_tokens);
    let about_prompt = match answers.first() {
        Some(first) => head.about_prompt(first),
        None => AboutPrompt::default(),
    };
    let choices = answers.into_iter().map(|answer| {
        let mut turn = Turn::new(&head);
        let (text, mut tool_calls) = turn.push(&answer.text, true);
        let text = head.request.echo.clone() + &text;
        for call in &mut tool_calls {
            call.index = None;
        }
        let token_ids = head.token_ids(&answer);
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
            token_ids,
        }
    });
    let choices = choices.collect();
    let usage = UsageField::Counts(Usage::new(head.prompt_tokens, generated, cached));
    let mut body = head.completion("chat.completion", choices, usage);
    body.prompt = about_prompt;
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

    fn chunk(&self, choice: ChunkChoice, prompt: AboutPrompt) -> Vec<u8> {
        let usage = self.options.usage(self.usage());
        let mut chunk = self
            .head
            .completion("chat.completion.chunk", vec![choice], usage);
        chunk.prompt = prompt;
        event(&chunk)
    }

    /// The events that begin an answer: the role, and what it repeats of the conversation.
    fn beginning(&self, piece: &Piece) -> Vec<u8> {
        let content = |role, text: &str| Delta {
            role,
            content: Some(text.to_owned()),
            ..Delta::default()
        };
        let role = ChunkChoice::of(piece.index, content(Some("assistant"), ""));
        // All answers have the same prompt, so it is told once.
        let about_prompt = match piece.index {
            0 => self.head.about_prompt(piece),
            _ => AboutPrompt::default(),
        };
        let mut events = self.chunk(role, about_prompt);
        if !self.head.request.echo.is_empty() {
            let repeated = content(None, &self.head.request.echo);
            let repeated = ChunkChoice::of(piece.index, repeated);
            events.extend(self.chunk(repeated, AboutPrompt::default()));
        }
        events
    }
}

impl ChunkChoice {
    /// A part of the answer `index` that is not its end.
    const fn of(index: usize, delta: Delta) -> Self {
        Self {
            index,
            delta,
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            token_ids: None,
        }
    }
}

impl EventShape for Chunks {
    fn piece(&mut self, piece: &Piece) -> Vec<u8> {
        let index = piece.index;
        if index == 0 {
            self.cached += piece.cached_tokens;
        }
        let mut events = Vec::new();
        if !mem::replace(&mut self.turns[index].has_begun, true) {
            // Before the piece's tokens are counted: none of them is in these events.
            events = self.beginning(piece);
        }
        self.generated += piece.generated();
        let turn = &mut self.turns[index];
        let (text, tool_calls) = turn.push(&piece.text, piece.finish.is_some());
        turn.logprobs
            .extend(self.head.logprobs(&piece.tokens).into_iter().flatten());
        turn.token_ids
            .extend(self.head.token_ids(piece).into_iter().flatten());
        let delta = Delta {
            content: (!text.is_empty()).then_some(text),
            tool_calls,
            ..Delta::default()
        };
        let has_delta = delta.content.is_some() || !delta.tool_calls.is_empty();
        if has_delta || piece.finish.is_some() && !turn.logprobs.is_empty() {
            let scored = mem::take(&mut turn.logprobs);
            let ids = mem::take(&mut turn.token_ids);
            let choice = ChunkChoice {
                logprobs: (!scored.is_empty()).then(|| Logprobs::of(scored)),
                token_ids: (!ids.is_empty()).then_some(ids),
                ..ChunkChoice::of(index, delta)
            };
            events.extend(self.chunk(choice, AboutPrompt::default()));
        }
        if let Some(finish) = &piece.finish {
            let turn = &mut self.turns[index];
            let ids = mem::take(&mut turn.token_ids);
            let end = ChunkChoice {
                finish_reason: Some(turn.reason(finish)),
                stop_reason: finish.stop_reason(),
                token_ids: (!ids.is_empty()).then_some(ids),
                ..ChunkChoice::of(index, Delta::default())
            };
            events.extend(self.chunk(end, AboutPrompt::default()));
        }
        events
    }

    fn last(&mut self) -> Vec<u8> {
        if !self.options.include_usage {
            return Vec::new();
        }
        let none: Vec<ChunkChoice> = Vec::new();
        let usage = UsageField::Counts(self.usage());
        event(&self.head.completion("chat.completion.chunk", none, usage))
    }
}

impl Head {
    fn completion<C>(
        &self,
        object: &'static str,
        choices: Vec<C>,
        usage: UsageField,
    ) -> Completion<'_, C> {
        Completion {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            choices,
            usage,
            prompt: AboutPrompt::default(),
        }
    }

    /// What the first piece of an answer knows of the prompt, as far as it was asked for.
    fn about_prompt(&self, piece: &Piece) -> AboutPrompt {
        let output = &self.request.sampling.output;
        AboutPrompt {
            prompt_token_ids: piece
                .prompt_ids
                .as_ref()
                .filter(|_| output.token_ids)
                .map(|ids| ids.to_vec()),
            prompt_logprobs: output
                .prompt_logprobs
                .map(|top| PromptLogprobs::of(&self.tokenizer, top, &piece.prompt)),
        }
    }

    fn token_ids(&self, piece: &Piece) -> Option<Vec<u32>> {
        let generated = piece.tokens.iter().chain(&piece.end);
        let is_asked = self.request.sampling.output.token_ids;
        is_asked.then(|| generated.map(|token| token.id).collect())
    }

    fn logprobs(&self, tokens: &[PlacedToken]) -> Option<Vec<TokenLogprob>> {
        let sampling = &self.request.sampling;
        let scored = tokens.iter().filter_map(|token| token.score.as_ref());
        let all = scored.map(|score: &Score| TokenLogprob {
            token: self.likely(score.token),
            top_logprobs: score
                .top
                .iter()
                .take(sampling.alternatives())
                .map(|&one| self.likely(one))
                .collect(),
        });
        sampling.logprobs.is_some().then(|| all.collect())
    }

    fn likely(&self, (id, logprob): (u32, f32)) -> Likely {
        let by_id = self.request.sampling.output.names_by_id;
        Likely {
            token: logprobs::name_or_id(&self.tokenizer, by_id, id),
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
