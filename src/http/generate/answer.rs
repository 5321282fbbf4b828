//! Token events → text, piece by piece: what every route that generates has in common.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, SelectAll};
use serde::Serialize;

use crate::engine::{FinishReason, Score, TokenEvent, TokenStream};
use crate::http::error_body::ApiError;
use crate::http::fields::invalid;
use crate::http::observe::Record;
use crate::text::stop::Scan;
use crate::text::thoughts::{Part, Phase, Splitter};
use crate::text::{Decoder, StopStrings, Tokenizer};

/// What holds for all answers of a request.
#[derive(Default)]
pub struct Rules {
    /// Strings that end an answer; each answer watches for them on its own.
    pub stops: StopStrings,
    /// Ids that the request named to end an answer.
    pub stop_token_ids: Vec<u32>,
    /// Whether what ended the answer is part of it.
    pub include_stop: bool,
    /// Tokens before which no stop string counts.
    pub min_tokens: usize,
    /// The most tokens: with the last of them an answer ends.
    pub max_tokens: usize,
    /// Whether the answer begins with the prompt.
    pub echo: bool,
    /// Whether the engine scores the prompt's tokens before the generated ones.
    pub scores_prompt: bool,
    /// The field that has the grammar, if there is one.
    pub grammar: Option<&'static str>,
    /// Whether special tokens are written out like text.
    pub shows_special: bool,
    /// Those that are, where the others are not.
    pub shown_tokens: Vec<u32>,
    /// Tells thoughts from answers, if there may be any. Stop strings are looked for in the answers.
    pub thoughts: Option<Splitter>,
    /// Whether thoughts are left in the text, as the model wrote them.
    pub leaves_thoughts: bool,
}

/// One answer in the making.
pub struct Answer {
    events: TokenStream,
    decoder: Decoder,
    stops: StopStrings,
    thoughts: Option<Splitter>,
    rules: Arc<Rules>,
    /// The prompt, until the first piece has taken it.
    prompt: Option<Arc<[u32]>>,
    /// Scores of the prompt's tokens from the second on, as far as they have come.
    prompt_scores: VecDeque<Score>,
    /// Of the token that comes next.
    score: Option<Score>,
    generated: usize,
    /// Characters decoded so far.
    decoded: usize,
}

/// The answers' texts, piece by piece as the tokens come.
pub struct Pieces {
    answers: SelectAll<BoxStream<'static, Result<Piece, ApiError>>>,
    cut: Pin<Box<dyn Future<Output = ApiError> + Send>>,
    record: Arc<Record>,
}

/// What one token adds to an answer. The text is often empty: half a character, or what may become a stop string.
#[derive(Default)]
pub struct Piece {
    /// Which answer.
    pub index: usize,
    /// The next part of its text.
    pub text: String,
    /// The next part of what was thought before it.
    pub thought: String,
    /// How many tokens of the thought are among the generated ones.
    pub thought_tokens: usize,
    /// How many of the prompt's tokens came from the cache; only in the first piece.
    pub cached_tokens: usize,
    /// The prompt's ids; only in the first piece.
    pub prompt_ids: Option<Arc<[u32]>>,
    /// The prompt's tokens, if they are part of the text or scored; only in the first piece.
    pub prompt: Vec<PlacedToken>,
    /// The generated tokens. Their text may come in later pieces.
    pub tokens: Vec<PlacedToken>,
    /// The stop id that ended the answer. It is no part of the text and is not counted.
    pub end: Option<PlacedToken>,
    /// How the answer ended, in its last piece.
    pub finish: Option<Finish>,
}

/// A token of a text.
pub struct PlacedToken {
    /// The token.
    pub id: u32,
    /// Characters of the text before it.
    pub offset: usize,
    /// How likely it was, if that was asked for and is known: nothing comes before a prompt's first token.
    pub score: Option<Score>,
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Finish {
    /// By itself, or by what the request asked to stop at.
    Stop(Option<StopReason>),
    /// At the most tokens.
    Length,
}

/// What the request asked to stop at, and came.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum StopReason {
    /// One of `stop_token_ids`.
    Id(u32),
    /// One of `stop`.
    Text(String),
}

impl Finish {
    /// OpenAI's word for it.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Stop(_) => "stop",
            Self::Length => "length",
        }
    }

    /// vLLM's addition.
    pub fn stop_reason(&self) -> Option<StopReason> {
        match self {
            Self::Stop(reason) => reason.clone(),
            Self::Length => None,
        }
    }
}

impl Answer {
    /// The answer that `events` will make.
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
            rules,
            prompt: Some(prompt),
            prompt_scores: VecDeque::new(),
            score: None,
            generated: 0,
            decoded: 0,
        }
    }

    /// The next piece, and whatever can give the one after it.
    async fn step(mut self, index: usize) -> (Result<Piece, ApiError>, Option<Self>) {
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
                piece.tokens.push(PlacedToken {
                    id,
                    offset: self.decoded,
                    score: self.score.take(),
                });
                let text = self.decode(id);
                self.decoded += text.chars().count();
                let before = self.phase();
                self.read(&text, &mut piece);
                if before == Some(Phase::Thought) && self.phase() == before {
                    piece.thought_tokens += 1;
                }
                // The end is certain to follow, and is part of this piece: an event of its own would have no text.
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
            // No event at all means that the engine is gone, without even time to say so.
            Some(TokenEvent::Failed | TokenEvent::Score(_)) | None => {
                return (Err(ApiError::Internal), None);
            }
        }
        // When the token stream is dropped, the engine stops.
        let rest = piece.finish.is_none().then_some(self);
        (Ok(piece), rest)
    }

    fn take_score(&mut self, score: Score) {
        // Only before the first piece can it be one of the prompt, whose tokens all come before the generated ones.
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

    /// Places the prompt's tokens, and begins the text with them if it is to have them. Special tokens are written out:
    /// they are what the client sent.
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

    /// Where the text is, if thoughts are looked for.
    fn phase(&self) -> Option<Phase> {
        self.thoughts.as_ref().map(Splitter::phase)
    }

    /// Takes the next text of the answer and its thought.
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
        for part in parts {
            match part {
                Part::Answer(text) if piece.finish.is_none() => self.watch(&text, piece),
                Part::Thought(text) | Part::Mark(text) if self.rules.leaves_thoughts => {
                    piece.text += &text;
                }
                Part::Thought(text) => piece.thought += &text,
                Part::Mark(_) | Part::Answer(_) => {}
            }
        }
    }

    /// Passes text on, unless it ends with a stop string or may become one.
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
        if piece.finish.is_none() {
            piece.text += &self.stops.finish();
            piece.finish = Some(finish);
        }
    }
}

/// What the scores of a token with so many alternatives take, as values and written out.
pub const fn scored_bytes(alternatives: usize) -> usize {
    // A name and a number in the answer are some 60 bytes, and twice that while it is being put together.
    128 * (1 + alternatives)
}

impl Piece {
    /// About what this adds to an answer that is put together: text twice, as it is and written out.
    fn bytes(&self) -> usize {
        let scores = self.tokens.iter().map(|token| match &token.score {
            Some(score) => scored_bytes(score.top.len()),
            None => size_of::<PlacedToken>(),
        });
        2 * (self.text.len() + self.thought.len()) + scores.sum::<usize>()
    }

    /// How many tokens were generated for it, the one that ended the answer included.
    pub fn generated(&self) -> usize {
        self.tokens.len() + usize::from(self.end.is_some())
    }

    /// Puts the piece that follows behind this one.
    pub fn append(&mut self, next: Self) {
        self.text += &next.text;
        self.thought += &next.thought;
        self.thought_tokens += next.thought_tokens;
        self.cached_tokens += next.cached_tokens;
        self.prompt_ids = self.prompt_ids.take().or(next.prompt_ids);
        self.prompt.extend(next.prompt);
        self.tokens.extend(next.tokens);
        self.end = next.end;
        self.finish = next.finish;
    }
}

impl Pieces {
    /// Runs `answers` side by side; `cut` resolves when they must end, to the reason.
    pub fn new(
        answers: Vec<Answer>,
        cut: impl Future<Output = ApiError> + Send + 'static,
        record: Arc<Record>,
    ) -> Self {
        let answers = answers.into_iter().enumerate().map(|(index, answer)| {
            stream::unfold(Some(answer), move |answer| async move {
                Some(answer?.step(index).await)
            })
            .boxed()
        });
        Self {
            answers: stream::select_all(answers),
            cut: Box::pin(cut),
            record,
        }
    }

    /// The next piece of any answer; `None` when all are complete. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<Piece, ApiError>> {
        let piece = tokio::select! {
            biased;
            piece = self.answers.next() => piece?,
            error = &mut self.cut => Err(error),
        };
        match &piece {
            Ok(piece) => {
                self.record.add_completion_tokens(piece.generated());
                if let Some(finish) = &piece.finish {
                    self.record.count_answer(finish.reason());
                }
            }
            Err(error) => self.record.set_failed(error),
        }
        Some(piece)
    }

    /// All answers, each put together from its pieces.
    ///
    /// # Errors
    /// When a generation fails, is cut off or has no memory left: half an answer is none.
    pub async fn collect(mut self) -> Result<Vec<Piece>, ApiError> {
        let mut answers = Vec::new();
        answers.resize_with(self.answers.len(), Piece::default);
        let mut bytes = 0;
        while let Some(piece) = self.next().await {
            let piece = piece?;
            bytes += piece.bytes();
            self.record.hold_more(bytes)?;
            let answer: &mut Piece = &mut answers[piece.index];
            answer.index = piece.index;
            answer.append(piece);
        }
        Ok(answers)
    }
}
