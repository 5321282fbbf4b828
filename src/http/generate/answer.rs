//! Token events → text, piece by piece, for all generating routes.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::Serialize;

use crate::engine::{FinishReason, Score, TokenEvent, TokenStream};
use crate::http::error_body::ApiError;
use crate::http::fields::invalid;
use crate::text::stop::Scan;
use crate::text::thoughts::{Part, Phase, Shown, Splitter};
use crate::text::{Decoder, StopStrings, Tokenizer};

/// Settings for all answers of a request.
#[derive(Default)]
pub struct Rules {
    /// Strings that end an answer; each answer searches for them separately.
    pub stops: StopStrings,
    /// Ids in the request that end an answer.
    pub stop_token_ids: Vec<u32>,
    /// Whether the stop string or id that ended the answer is part of it.
    pub include_stop: bool,
    /// The number of tokens before which stop strings are ignored.
    pub min_tokens: usize,
    /// The most tokens of an answer.
    pub max_tokens: usize,
    /// Whether the answer begins with the prompt.
    pub echo: bool,
    /// Whether the engine scores the prompt's tokens before the generated ones.
    pub scores_prompt: bool,
    /// The field of the request that has the grammar, if there is one.
    pub grammar: Option<&'static str>,
    /// Whether special tokens are written to the text.
    pub shows_special: bool,
    /// Special tokens that are written to the text even if the others are not.
    pub shown_tokens: Vec<u32>,
    /// Separates thoughts from answers, if there may be thoughts. Stop strings are searched for only in answers.
    pub thoughts: Option<Splitter>,
    /// How responses show thoughts.
    pub shown_thoughts: Shown,
}

/// An answer that is being generated.
pub struct Answer {
    events: TokenStream,
    decoder: Decoder,
    stops: StopStrings,
    thoughts: Option<Splitter>,
    /// Whether the answer has begun behind its thought.
    has_begun: bool,
    rules: Arc<Rules>,
    /// The prompt, until the first piece has taken it.
    prompt: Option<Arc<[u32]>>,
    /// The scores of the prompt's tokens, from the second one on, that have arrived so far.
    prompt_scores: VecDeque<Score>,
    /// The score of the next token.
    score: Option<Score>,
    generated: usize,
    /// Tokens of which it is not known yet whether they belong to a thought that is not shown.
    undecided: Vec<PlacedToken>,
    /// Characters decoded so far.
    decoded: usize,
}

/// What one token adds to an answer. The text is often empty, when the token is only a part of a character or may begin
/// a stop string.
#[derive(Default)]
pub struct Piece {
    /// The index of the answer.
    pub index: usize,
    /// The next part of its text.
    pub text: String,
    /// The next part of the thought, which comes before the text.
    pub thought: String,
    /// How many of the generated tokens belong to the thought.
    pub thought_tokens: usize,
    /// How many of the prompt's tokens were found in the prefix cache; only in the first piece.
    pub cached_tokens: usize,
    /// The prompt's ids; only in the first piece.
    pub prompt_ids: Option<Arc<[u32]>>,
    /// The prompt's tokens, if they are echoed or scored; only in the first piece.
    pub prompt: Vec<PlacedToken>,
    /// The number of generated tokens, without the stop id that ended the answer.
    pub token_count: usize,
    /// The generated tokens, except those of a thought that is not shown. Their text may be in later pieces.
    pub tokens: Vec<PlacedToken>,
    /// The stop id that ended the answer. It is not part of the text.
    pub end: Option<PlacedToken>,
    /// How the answer ended, in its last piece.
    pub finish: Option<Finish>,
}

/// A token at its position in a text.
pub struct PlacedToken {
    /// The token.
    pub id: u32,
    /// Characters of the text before it.
    pub offset: usize,
    /// The token's log-probability, if requested. A prompt's first token has none.
    pub score: Option<Score>,
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Finish {
    /// By the model's end of text, or by a stop string or stop id of the request.
    Stop(Option<StopReason>),
    /// By reaching the most tokens.
    Length,
}

/// The stop string or stop id of the request that ended the answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum StopReason {
    /// One of `stop_token_ids`.
    Id(u32),
    /// One of `stop`.
    Text(String),
}

impl Finish {
    /// OpenAI's `finish_reason`.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Stop(_) => "stop",
            Self::Length => "length",
        }
    }

    /// vLLM's `stop_reason`.
    pub fn stop_reason(&self) -> Option<StopReason> {
        match self {
            Self::Stop(reason) => reason.clone(),
            Self::Length => None,
        }
    }
}

impl Answer {
    /// An answer whose tokens come from `events`.
    pub fn new(
        events: TokenStream,
        prompt: Arc<[u32]>,
        tokenizer: Arc<Tokenizer>,
        rules: Arc<Rules>,
    ) -> Self {
        Self {
            events,
            decoder: Decoder::new(tokenizer),
            stops: rules.stops.clone(),
            thoughts: rules.thoughts.clone(),
            has_begun: false,
            rules,
            prompt: Some(prompt),
            prompt_scores: VecDeque::new(),
            score: None,
            generated: 0,
            undecided: Vec::new(),
            decoded: 0,
        }
    }

    /// The next piece, and the answer if more pieces follow.
    pub(super) async fn step(mut self, index: usize) -> (Result<Piece, ApiError>, Option<Self>) {
        let event = loop {
            match self.events.next().await {
                Some(TokenEvent::Score(score)) => self.take_score(*score),
                event => break event,
            }
        };
        let mut piece = Piece {
            index,
            ..Piece::default()
        };
        if let Some(prompt) = self.prompt.take() {
            if self.rules.echo || self.rules.scores_prompt {
                self.place(&prompt, &mut piece);
            }
            piece.prompt_ids = Some(prompt);
            piece.cached_tokens = self.events.cached_tokens();
        }
        match event {
            Some(TokenEvent::Token(id)) => {
                self.generated += 1;
                piece.token_count += 1;
                let token = PlacedToken {
                    id,
                    offset: self.decoded,
                    score: self.score.take(),
                };
                let text = self.decode(id);
                self.decoded += text.chars().count();
                let before = self.phase();
                self.read(&text, &mut piece);
                self.add_token(token, before, &mut piece);
                if before == Some(Phase::Thought) && self.phase() == before {
                    piece.thought_tokens += 1;
                }
                // The end must follow now. It is made part of this piece, because an event of its own would have no
                // text.
                if self.generated == self.rules.max_tokens
                    && piece.finish.is_none()
                    && let Some(TokenEvent::Finished(reason)) = self.events.next().await
                {
                    self.finish(reason, &mut piece);
                }
            }
            Some(TokenEvent::Finished(reason)) => self.finish(reason, &mut piece),
            Some(TokenEvent::Undecided) => {
                let expected = "a grammar of which each token takes less work";
                let error = invalid(self.rules.grammar.unwrap_or("grammar"), expected);
                return (Err(error), None);
            }
            Some(TokenEvent::Contradicted) => {
                let expected = "one that the request's other fields let an answer meet";
                let error = invalid(self.rules.grammar.unwrap_or("grammar"), expected);
                return (Err(error), None);
            }
            // No event at all means that the engine's thread has stopped. Requests do not run in the background.
            Some(TokenEvent::Failed | TokenEvent::Displaced | TokenEvent::Score(_)) | None => {
                return (Err(ApiError::Internal), None);
            }
        }
        // If `self` is dropped here, so is its token stream, and the engine stops the generation.
        let rest = piece.finish.is_none().then_some(self);
        (Ok(piece), rest)
    }

    /// Adds a generated token to the piece, unless it belongs to a thought that is not shown. `before` is the phase
    /// before the token.
    fn add_token(&mut self, token: PlacedToken, before: Option<Phase>, piece: &mut Piece) {
        let phase = self
            .phase()
            .filter(|_| self.rules.shown_thoughts == Shown::Not);
        match (before, phase) {
            (Some(Phase::Thought), Some(_)) | (_, Some(Phase::Thought)) => self.undecided.clear(),
            (_, Some(Phase::Undecided)) => self.undecided.push(token),
            (_, None | Some(Phase::Answer)) => {
                piece.tokens.append(&mut self.undecided);
                piece.tokens.push(token);
            }
        }
    }

    fn take_score(&mut self, score: Score) {
        // Scores of the prompt can arrive only before the first piece, because all its tokens come before the generated
        // ones.
        let missing = self.prompt.as_ref().map_or(0, |prompt| prompt.len() - 1);
        if self.rules.scores_prompt && self.prompt_scores.len() < missing {
            self.prompt_scores.push_back(score);
        } else {
            self.score = Some(score);
        }
    }

    fn decode(&mut self, id: u32) -> String {
        if self.rules.shows_special || self.rules.shown_tokens.contains(&id) {
            self.decoder.push_literally(id)
        } else {
            self.decoder.push(id)
        }
    }

    /// Adds the prompt's tokens to the piece, and their text if it is echoed. Special tokens are written too, because
    /// the client sent them.
    fn place(&mut self, prompt: &[u32], piece: &mut Piece) {
        for (at, &id) in prompt.iter().enumerate() {
            let scores = &mut self.prompt_scores;
            piece.prompt.push(PlacedToken {
                id,
                offset: self.decoded,
                score: if at == 0 { None } else { scores.pop_front() },
            });
            if self.rules.echo {
                let text = self.decoder.push_literally(id);
                self.decoded += text.chars().count();
                piece.text += &text;
            }
        }
    }

    /// The phase that the generated text has reached, if thoughts are separated.
    fn phase(&self) -> Option<Phase> {
        self.thoughts.as_ref().map(Splitter::phase)
    }

    /// Adds decoded text, of the answer or its thought, to the piece.
    fn read(&mut self, text: &str, piece: &mut Piece) {
        match &mut self.thoughts {
            None => self.watch(text, piece),
            Some(splitter) => {
                let parts = splitter.push(text);
                self.tell_apart(parts, piece);
            }
        }
    }

    fn tell_apart(&mut self, parts: Vec<Part>, piece: &mut Piece) {
        let in_text = self.rules.shown_thoughts == Shown::InText;
        for part in parts {
            match part {
                Part::Answer(text) if piece.finish.is_none() => {
                    self.has_begun = true;
                    self.watch(&text, piece);
                }
                Part::Mark(text) if in_text && self.has_begun => piece.text += &text,
                Part::Mark(text) if in_text => piece.thought += &text,
                Part::Thought(text) => piece.thought += &text,
                Part::Mark(_) | Part::Answer(_) => {}
            }
        }
    }

    /// Adds `text` to the piece, up to a stop string. Holds back text that may begin a stop string.
    fn watch(&mut self, text: &str, piece: &mut Piece) {
        if self.generated <= self.rules.min_tokens {
            piece.text += text;
            return;
        }
        match self.stops.push(text) {
            Scan::Continue(text) => piece.text += &text,
            Scan::Stop(text, stop) => {
                piece.text += &text;
                if self.rules.include_stop {
                    piece.text += &stop;
                }
                piece.finish = Some(Finish::Stop(Some(StopReason::Text(stop))));
            }
        }
    }

    fn finish(&mut self, reason: FinishReason, piece: &mut Piece) {
        let mut text = String::new();
        if let FinishReason::Stop(id) = reason {
            piece.end = Some(PlacedToken {
                id,
                offset: self.decoded,
                score: self.score.take(),
            });
        }
        let finish = match reason {
            FinishReason::Stop(id) if self.rules.stop_token_ids.contains(&id) => {
                if self.rules.include_stop {
                    text = self.decode(id);
                }
                Finish::Stop(Some(StopReason::Id(id)))
            }
            FinishReason::Stop(_) | FinishReason::Complete => Finish::Stop(None),
            FinishReason::Length => Finish::Length,
        };
        text += &self.decoder.finish();
        self.read(&text, piece);
        let rest = self.thoughts.as_mut().map(Splitter::finish);
        self.tell_apart(rest.unwrap_or_default(), piece);
        piece.tokens.append(&mut self.undecided);
        if piece.finish.is_none() {
            piece.text += &self.stops.finish();
            piece.finish = Some(finish);
        }
    }
}

/// Bytes that the scores of a token with this many alternatives take, as values and as JSON.
pub const fn scored_bytes(alternatives: usize) -> usize {
    // A name and a number take some 60 bytes in the response, and twice that while the response is built.
    128 * (1 + alternatives)
}

impl Piece {
    /// An estimate of the bytes that this piece adds to a response in one body: its text counts twice, as text and as
    /// JSON.
    pub(super) fn bytes(&self) -> usize {
        let scores = self.tokens.iter().map(|token| match &token.score {
            Some(score) => scored_bytes(score.top.len()),
            None => size_of::<PlacedToken>(),
        });
        2 * (self.text.len() + self.thought.len()) + scores.sum::<usize>()
    }

    /// The number of tokens generated for this piece, including the one that ended the answer.
    pub fn generated(&self) -> usize {
        self.token_count + usize::from(self.end.is_some())
    }

    /// Appends the next piece of the same answer.
    pub fn append(&mut self, next: Self) {
        self.text += &next.text;
        self.thought += &next.thought;
        self.thought_tokens += next.thought_tokens;
        self.cached_tokens += next.cached_tokens;
        self.prompt_ids = self.prompt_ids.take().or(next.prompt_ids);
        self.prompt.extend(next.prompt);
        self.token_count += next.token_count;
        self.tokens.extend(next.tokens);
        self.end = next.end;
        self.finish = next.finish;
    }
}
