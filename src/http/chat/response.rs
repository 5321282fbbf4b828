//! Writes answers as messages of the assistant, in one body or as events.

use std::mem;
use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};

use super::request::ChatRequest;
use super::shapes::{
    AboutPrompt, Choice, ChunkChoice, Completion, Delta, Likely, Logprobs, Message, Said, Thought,
    TokenLogprob,
};
use super::turn::{Start, Turn};
use crate::engine::Score;
use crate::http::app::ServedModel;
use crate::http::error_body::ApiError;
use crate::http::generate::answer::{Finish, Piece, PlacedToken};
use crate::http::generate::logprobs::{self, PromptLogprobs};
use crate::http::generate::output::StreamOptions;
use crate::http::generate::response::{Counts, Head, UsageField, Writer};
use crate::http::generate::streaming::{done, event, failure};
use crate::http::receipt::Receipt;

/// The `object` of the chunks of a stream in OpenAI's API.
const CHUNK: &str = "chat.completion.chunk";

/// Writes the response to a request.
pub struct ChatWriter {
    head: Head,
    counts: Counts,
    request: Arc<ChatRequest>,
    stream: StreamOptions,
    /// Whether the model may think.
    thinks: bool,
    answers: Vec<Streamed>,
}

/// An answer that is being streamed.
struct Streamed {
    turn: Turn,
    has_begun: bool,
    /// Log-probabilities of tokens whose text has not been sent yet; `token_ids` has the ids of such tokens.
    logprobs: Vec<TokenLogprob>,
    token_ids: Vec<u32>,
}

impl ChatWriter {
    /// Creates a writer for a request whose rendered conversation ends as `start` says.
    pub fn new(model: &ServedModel, request: Arc<ChatRequest>, start: &Start) -> Self {
        let n = request.common.n;
        let streamed = |_| Streamed {
            turn: Turn::new(&request, start),
            has_begun: false,
            logprobs: Vec::new(),
            token_ids: Vec::new(),
        };
        Self {
            head: Head::new("chatcmpl-", model),
            counts: start.counts(n),
            thinks: start.thinks,
            answers: (0..n).map(streamed).collect(),
            stream: request.common.output.stream.unwrap_or_default(),
            request,
        }
    }

    fn chunk(&self, choice: ChunkChoice, prompt: AboutPrompt) -> Vec<u8> {
        let usage = self.stream.usage(self.counts.usage());
        let body = self.head.body(CHUNK, vec![choice], usage);
        event(&Completion { body, prompt })
    }

    /// The events that begin an answer: the role, and the repeated message if the request has `echo`.
    fn beginning(&self, piece: &Piece) -> Vec<u8> {
        let content = |role, text: &str| Delta {
            role,
            content: Some(text.to_owned()),
            ..Delta::default()
        };
        let role = ChunkChoice::of(piece.index, content(Some("assistant"), ""));
        // All answers have the same prompt, so only the first answer contains it.
        let about_prompt = match piece.index {
            0 => self.about_prompt(piece),
            _ => AboutPrompt::default(),
        };
        let mut events = self.chunk(role, about_prompt);
        if !self.request.echo.is_empty() {
            let repeated = content(None, &self.request.echo);
            let repeated = ChunkChoice::of(piece.index, repeated);
            events.extend(self.chunk(repeated, AboutPrompt::default()));
        }
        events
    }

    /// Converts a complete answer. `turn` must be new.
    fn choice(&self, mut turn: Turn, mut answer: Piece) -> Choice {
        let token_ids = self.token_ids(&answer);
        let finish = answer.finish.get_or_insert(Finish::Stop(None)).clone();
        let said = Said::of(turn.push(&answer));
        let text = self.request.echo.clone() + &said.text;
        let mut tool_calls = said.calls;
        for call in &mut tool_calls {
            call.index = None;
        }
        let may_be_null = self.thinks || !tool_calls.is_empty();
        Choice {
            index: answer.index,
            message: Message {
                role: "assistant",
                content: (!text.is_empty() || !may_be_null).then_some(text),
                thought: Thought::of(&said.thought),
                refusal: (),
                tool_calls,
            },
            logprobs: self.logprobs(&answer.tokens).map(Logprobs::of),
            finish_reason: reason(&turn, &finish),
            stop_reason: finish.stop_reason(),
            token_ids,
        }
    }

    /// The information about the prompt in the first piece of an answer, as far as the request asks for it.
    fn about_prompt(&self, piece: &Piece) -> AboutPrompt {
        let output = &self.request.common.output;
        AboutPrompt {
            prompt_token_ids: piece
                .prompt_ids
                .as_ref()
                .filter(|_| output.token_ids)
                .map(|ids| ids.to_vec()),
            prompt_logprobs: output
                .prompt_logprobs
                .map(|top| PromptLogprobs::of(&self.head.tokenizer, top, &piece.prompt)),
        }
    }

    fn token_ids(&self, piece: &Piece) -> Option<Vec<u32>> {
        let generated = piece.tokens.iter().chain(&piece.end);
        let is_asked = self.request.common.output.token_ids;
        is_asked.then(|| generated.map(|token| token.id).collect())
    }

    fn logprobs(&self, tokens: &[PlacedToken]) -> Option<Vec<TokenLogprob>> {
        let common = &self.request.common;
        let scored = tokens.iter().filter_map(|token| token.score.as_ref());
        let all = scored.map(|score: &Score| TokenLogprob {
            token: self.likely(score.token),
            top_logprobs: score
                .top
                .iter()
                .take(common.alternatives())
                .map(|&one| self.likely(one))
                .collect(),
        });
        common.logprobs.is_some().then(|| all.collect())
    }

    fn likely(&self, (id, logprob): (u32, f32)) -> Likely {
        let by_id = self.request.common.output.names_by_id;
        Likely {
            token: logprobs::name_or_id(&self.head.tokenizer, by_id, id),
            logprob: logprob.max(logprobs::LEAST),
            bytes: self.head.tokenizer.bytes(id).to_vec(),
        }
    }
}

impl Writer for ChatWriter {
    fn piece(&mut self, piece: &Piece) -> Vec<u8> {
        let index = piece.index;
        self.counts.add_cached(piece);
        let mut events = Vec::new();
        if !mem::replace(&mut self.answers[index].has_begun, true) {
            // These events have no tokens of the piece, so they come before its tokens are counted.
            events = self.beginning(piece);
        }
        self.counts.add_generated(piece);
        let scored = self.logprobs(&piece.tokens);
        let ids = self.token_ids(piece);
        let answer = &mut self.answers[index];
        answer.logprobs.extend(scored.into_iter().flatten());
        answer.token_ids.extend(ids.into_iter().flatten());
        let said = Said::of(answer.turn.push(piece));
        let delta = Delta {
            content: (!said.text.is_empty()).then_some(said.text),
            thought: Thought::of(&said.thought),
            tool_calls: said.calls,
            ..Delta::default()
        };
        let has_text = delta.content.is_some() || !delta.thought.is_empty();
        let has_delta = has_text || !delta.tool_calls.is_empty();
        if has_delta || piece.finish.is_some() && !answer.logprobs.is_empty() {
            let scored = mem::take(&mut answer.logprobs);
            let ids = mem::take(&mut answer.token_ids);
            let choice = ChunkChoice {
                logprobs: (!scored.is_empty()).then(|| Logprobs::of(scored)),
                token_ids: (!ids.is_empty()).then_some(ids),
                ..ChunkChoice::of(index, delta)
            };
            events.extend(self.chunk(choice, AboutPrompt::default()));
        }
        if let Some(finish) = &piece.finish {
            let answer = &mut self.answers[index];
            let ids = mem::take(&mut answer.token_ids);
            let end = ChunkChoice {
                finish_reason: Some(reason(&answer.turn, finish)),
                stop_reason: finish.stop_reason(),
                token_ids: (!ids.is_empty()).then_some(ids),
                ..ChunkChoice::of(index, Delta::default())
            };
            events.extend(self.chunk(end, AboutPrompt::default()));
        }
        events
    }

    fn last(&mut self, receipt: Option<Receipt>) -> Vec<u8> {
        if !self.stream.include_usage {
            return done(Vec::new());
        }
        let none: Vec<ChunkChoice> = Vec::new();
        let usage = UsageField::Counts(self.counts.usage());
        let body = self.head.body(CHUNK, none, usage);
        done(event(&body.with_receipt(receipt)))
    }

    fn failed(&mut self, error: &ApiError) -> Vec<u8> {
        failure(error)
    }

    fn whole(mut self, answers: Vec<Piece>, receipt: Option<Receipt>) -> Response {
        for answer in &answers {
            self.counts.add_cached(answer);
            self.counts.add_generated(answer);
        }
        let about_prompt = answers.first().map(|first| self.about_prompt(first));
        let turns = mem::take(&mut self.answers).into_iter();
        let turns = turns.map(|answer| answer.turn);
        let choices = turns.zip(answers);
        let choices = choices.map(|(turn, answer)| self.choice(turn, answer));
        let usage = UsageField::Counts(self.counts.usage());
        let body = self.head.body("chat.completion", choices.collect(), usage);
        let body = body.with_receipt(receipt);
        let prompt = about_prompt.unwrap_or_default();
        Json(Completion { body, prompt }).into_response()
    }
}

/// The `finish_reason` of OpenAI's API. A client runs calls when it reads `tool_calls`.
fn reason(turn: &Turn, finish: &Finish) -> &'static str {
    match turn.wants_calls(finish) {
        true => "tool_calls",
        false => finish.reason(),
    }
}
