//! All that is known about one generation, but for its place in the batch, which is the scheduler's.

use std::time::Instant;

use rand_pcg::Pcg64;
use tokio::sync::mpsc;
use tracing::error;

use super::adjust::{Adjustments, Undecided};
use super::request::{FinishReason, Generation, Sampling, Score, TokenEvent};
use super::sampler::{self, Sampler};
use crate::telemetry::Metrics;

/// One generation on the engine's side of the thread boundary.
#[derive(Debug)]
pub(super) struct Sequence {
    /// The prompt's tokens and those generated so far.
    tokens: Vec<u32>,
    prompt_len: usize,
    max_tokens: usize,
    stop_ids: Vec<u32>,
    /// How the next token is chosen.
    sampling: Sampling,
    /// What the choice draws from.
    generator: Pcg64,
    /// What changes the logits before.
    adjustments: Option<Adjustments>,
    scores: Option<usize>,
    scores_prompt: bool,
    /// Where events go. It has room for all of them, so sending never waits.
    events: mpsc::Sender<TokenEvent>,
    arrived: Instant,
    last_token: Option<Instant>,
    /// The last event, once it is known.
    end: Option<TokenEvent>,
}

/// One generation on the caller's side: its events, in order. Dropping it cancels the generation, wherever it is: the
/// engine frees its place and pages before the next step.
#[derive(Debug)]
pub struct TokenStream {
    events: mpsc::Receiver<TokenEvent>,
    ended: bool,
}

impl Sequence {
    /// The two ends of a generation.
    pub fn new(mut generation: Generation, arrived: Instant) -> (Self, TokenStream) {
        // Every token and the end, and perhaps a score for each.
        let mut room = generation.max_tokens + 1;
        if generation.scores.is_some() {
            room += generation.max_tokens;
        }
        if generation.score_prompt {
            room += generation.prompt.len();
        }
        let (events, receiver) = mpsc::channel(room);
        let sequence = Self {
            adjustments: Adjustments::new(&mut generation),
            scores: generation.scores,
            scores_prompt: generation.score_prompt,
            prompt_len: generation.prompt.len(),
            tokens: generation.prompt,
            max_tokens: generation.max_tokens,
            stop_ids: generation.stop_ids,
            generator: sampler::generator(generation.sampling.seed),
            sampling: generation.sampling,
            events,
            arrived,
            last_token: None,
            end: None,
        };
        let stream = TokenStream {
            events: receiver,
            ended: false,
        };
        (sequence, stream)
    }

    /// The tokens at `start..start + rows`.
    pub fn tokens(&self, start: usize, rows: usize) -> &[u32] {
        &self.tokens[start..start + rows]
    }

    pub const fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    pub const fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// When it was submitted.
    pub const fn arrived(&self) -> Instant {
        self.arrived
    }

    /// How many tokens it has generated.
    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Whether the other side dropped its stream.
    pub fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Whether the last event is known.
    pub fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Whether the logits of all the prompt's rows are wanted, not of the last one alone.
    pub const fn scores_prompt(&self) -> bool {
        self.scores_prompt
    }

    /// Takes the logits of the row at `position`, which say what comes after it: the next token of the prompt is scored,
    /// and after the last token of all a new one is chosen and accepted.
    pub fn advance(
        &mut self,
        position: usize,
        logits: &[f32],
        sampler: &mut Sampler,
        now: Instant,
        metrics: &Metrics,
    ) {
        if position + 1 < self.prompt_len {
            let next = self.tokens[position + 1];
            match sampler.score(logits, next, self.scores.unwrap_or(0)) {
                Some(score) => self.report(TokenEvent::Score(Box::new(score))),
                None => self.fail(TokenEvent::Failed),
            }
        } else if self.max_tokens == 0 {
            self.end = Some(TokenEvent::Finished(FinishReason::Length));
        } else {
            match self.choose(logits, sampler) {
                Ok(Some((token, score))) => self.accept(token, score, now, metrics),
                // Whatever the settings left, the text so far is as long as they let it become.
                Ok(None) => self.end = Some(TokenEvent::Finished(FinishReason::Complete)),
                Err(end) => self.fail(end),
            }
        }
    }

    /// The next token and its score, if scores are wanted. `None` if nothing may come next.
    ///
    /// Depends on the logits, on the tokens accepted so far and on how many they are; draws once if it draws at all.
    fn choose(
        &mut self,
        logits: &[f32],
        sampler: &mut Sampler,
    ) -> Result<Option<(u32, Option<Score>)>, TokenEvent> {
        const NOT_FINITE: TokenEvent = TokenEvent::Failed;
        let (sampling, generator) = (&self.sampling, &mut self.generator);
        let token = match &mut self.adjustments {
            None => Some(
                sampler
                    .sample(logits, sampling, generator)
                    .ok_or(NOT_FINITE)?,
            ),
            Some(adjustments) => {
                let (tokens, stop_ids) = (&self.tokens, &self.stop_ids);
                sampler.sample_adjusted(logits, sampling, generator, NOT_FINITE, |logits| {
                    adjustments
                        .apply(logits, sampling, stop_ids, tokens, self.prompt_len)
                        .map_err(|Undecided| TokenEvent::Undecided)
                })?
            }
        };
        let Some(token) = token else { return Ok(None) };
        let score = match self.scores {
            None => None,
            Some(top) => Some(sampler.score(logits, token, top).ok_or(NOT_FINITE)?),
        };
        Ok(Some((token, score)))
    }

    /// Appends a generated token and reports it, or ends the generation if it is a stop id or the last one allowed.
    fn accept(&mut self, token: u32, score: Option<Score>, now: Instant, metrics: &Metrics) {
        if let Some(score) = score {
            self.report(TokenEvent::Score(Box::new(score)));
        }
        if self.stop_ids.contains(&token) {
            self.end = Some(TokenEvent::Finished(FinishReason::Stop(token)));
            return;
        }
        self.tokens.push(token);
        self.report(TokenEvent::Token(token));
        metrics.generation_tokens_total.inc();
        let (histogram, since) = match self.last_token.replace(now) {
            None => (&metrics.time_to_first_token_seconds, self.arrived),
            Some(last) => (&metrics.inter_token_latency_seconds, last),
        };
        histogram.observe((now - since).as_secs_f64());
        let adjustments = self.adjustments.as_mut();
        if adjustments.is_some_and(|all| all.accept(token, &self.sampling)) {
            self.end = Some(TokenEvent::Finished(FinishReason::Complete));
        } else if self.generated() == self.max_tokens {
            self.end = Some(TokenEvent::Finished(FinishReason::Length));
        }
    }

    /// Ends the generation without success.
    fn fail(&mut self, end: TokenEvent) {
        if end == TokenEvent::Failed {
            let generated = self.generated();
            error!(generated, "logits are not finite; this generation fails");
        }
        self.end = Some(end);
    }

    /// Reports the end. A sequence that is dropped without this has failed; its stream says so.
    pub fn finish(mut self) {
        if let Some(end) = self.end.take() {
            self.report(end);
        }
    }

    /// The receiver may have gone, which the next step will see; the channel cannot be full.
    fn report(&self, event: TokenEvent) {
        let _ = self.events.try_send(event);
    }
}

impl TokenStream {
    /// The next event. The last one is `Finished` or `Failed`, then there are none.
    ///
    /// Cancel safe: if the future is dropped before it is ready, no event is lost.
    pub async fn next(&mut self) -> Option<TokenEvent> {
        if self.ended {
            return None;
        }
        // The engine ends every generation, or else has died.
        let event = self.events.recv().await.unwrap_or(TokenEvent::Failed);
        self.ended = !matches!(event, TokenEvent::Token(_) | TokenEvent::Score(_));
        Some(event)
    }
}
