//! All that is known about one generation, but for its place in the batch, which is the scheduler's.

use std::time::Instant;

use rand_pcg::Pcg64;
use tokio::sync::mpsc;

use super::request::{FinishReason, Generation, Sampling, TokenEvent};
use super::sampler;
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
    pub sampling: Sampling,
    /// What the choice draws from.
    pub generator: Pcg64,
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
    pub fn new(generation: Generation, arrived: Instant) -> (Self, TokenStream) {
        // Every token and the end.
        let (events, receiver) = mpsc::channel(generation.max_tokens + 1);
        let sequence = Self {
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

    /// Appends a generated token and reports it, or ends the generation if it is a stop id or the last one allowed.
    pub fn accept(&mut self, token: u32, now: Instant, metrics: &Metrics) {
        if self.stop_ids.contains(&token) {
            self.end = Some(TokenEvent::Finished(FinishReason::Stop));
            return;
        }
        if self.generated() < self.max_tokens {
            self.tokens.push(token);
            self.report(TokenEvent::Token(token));
            metrics.generation_tokens_total.inc();
            let (histogram, since) = match self.last_token.replace(now) {
                None => (&metrics.time_to_first_token_seconds, self.arrived),
                Some(last) => (&metrics.inter_token_latency_seconds, last),
            };
            histogram.observe((now - since).as_secs_f64());
        }
        if self.generated() == self.max_tokens {
            self.end = Some(TokenEvent::Finished(FinishReason::Length));
        }
    }

    /// Ends the generation without success.
    pub fn fail(&mut self) {
        self.end = Some(TokenEvent::Failed);
    }

    /// Reports the end. A sequence that is dropped without this has failed; its stream says so.
    pub fn finish(self) {
        if let Some(end) = self.end {
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
        self.ended = !matches!(event, TokenEvent::Token(_));
        Some(event)
    }
}
