//! All that is known about one generation, but for its place in the batch, which is the scheduler's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rand_pcg::Pcg64;
use tokio::sync::mpsc;
use tracing::error;

use super::adjust::{Adjustments, Undecided};
use super::request::{FinishReason, Generation, Sampling, Score, TokenEvent};
use super::sampler::{self, Sampler};
use super::scheduler::Job;
use super::speculation::{self, Acceptance, Bet};
use crate::telemetry::Metrics;

/// One generation on the engine's side of the thread boundary.
#[derive(Debug)]
pub(super) struct Sequence {
    /// The prompt's tokens, those generated so far, and drafts. It has room for all that may come.
    tokens: Vec<u32>,
    /// How many at the end of `tokens` are drafts that have not been checked.
    drafts: usize,
    /// What the next token was guessed to be, where that guess is not run.
    guess: Option<u32>,
    acceptance: Acceptance,
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
    score_ids: Vec<u32>,
    /// Tokens of the prompt that are to be scored, and how many have been.
    scores_wanted: usize,
    scored: usize,
    cache_salt: u128,
    /// Positions that have been computed or were found in the prefix cache. A sequence that is preempted computes some of
    /// them again.
    computed: usize,
    /// Where events go. It has room for all of them, so sending never waits.
    events: mpsc::Sender<TokenEvent>,
    /// What [`TokenStream::cached_tokens`] says.
    cached_tokens: Arc<AtomicUsize>,
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
    cached_tokens: Arc<AtomicUsize>,
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
        let cached_tokens = Arc::new(AtomicUsize::new(0));
        let adjustments = Adjustments::new(&mut generation);
        let mut tokens = generation.prompt;
        let prompt_len = tokens.len();
        // Here, so that no step has to. It is no more than the context, and untouched until it is needed.
        tokens.reserve_exact(generation.max_tokens);
        let sequence = Self {
            adjustments,
            scores: generation.scores,
            score_ids: generation.score_ids,
            // Nothing comes before the first token, which could say how likely it was.
            scores_wanted: if generation.score_prompt {
                prompt_len - 1
            } else {
                0
            },
            scored: 0,
            cache_salt: generation.cache_salt,
            computed: 0,
            prompt_len,
            tokens,
            drafts: 0,
            guess: None,
            acceptance: Acceptance::default(),
            max_tokens: generation.max_tokens,
            stop_ids: generation.stop_ids,
            generator: sampler::generator(generation.sampling.seed),
            sampling: generation.sampling,
            events,
            cached_tokens: Arc::clone(&cached_tokens),
            arrived,
            last_token: None,
            end: None,
        };
        let stream = TokenStream {
            events: receiver,
            cached_tokens,
            ended: false,
        };
        (sequence, stream)
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
    pub const fn generated(&self) -> usize {
        self.tokens.len() - self.drafts - self.prompt_len
    }

    /// Whether none of it has been computed or found in the prefix cache.
    pub const fn is_new(&self) -> bool {
        self.computed == 0
    }

    /// Notes that the first `count` tokens of the prompt need not be computed.
    pub fn set_cached_tokens(&mut self, count: usize) {
        self.cached_tokens.store(count, Ordering::Relaxed);
        self.computed = count;
    }

    /// Notes that all positions before `end` are computed. Returns how many tokens of the prompt are among those that
    /// were not before.
    pub fn set_computed(&mut self, end: usize) -> usize {
        let before = self.computed.min(self.prompt_len);
        self.computed = self.computed.max(end);
        self.computed.min(self.prompt_len) - before
    }

    /// Guesses at the next tokens, `most` of them at most and as far as `bet` says that it pays.
    pub fn speculate(&mut self, bet: &mut Bet<'_>, most: usize) {
        let Some(from) = speculation::lookup(&self.tokens) else {
            self.guess = None;
            return;
        };
        // The last token allowed is never run, so there is nothing to gain by guessing it.
        let useful = (self.max_tokens - self.generated()).saturating_sub(1);
        let drafts = bet.drafts(&self.acceptance, most.min(useful));
        self.guess = (drafts == 0).then(|| self.tokens[from]);
        // One by one: a text that repeats itself goes on into its own drafts.
        for index in from..from + drafts {
            self.tokens.push(self.tokens[index]);
        }
        self.drafts = drafts;
        bet.add(&self.acceptance, drafts);
    }

    /// Ends the guessing for this step: of `drafted` drafts that were run the first `accepted` were right.
    pub fn end_drafts(&mut self, drafted: usize, accepted: usize, metrics: &Metrics) {
        self.drop_drafts();
        if drafted > 0 {
            self.acceptance.observe(drafted, accepted);
            let total = &metrics.speculation_drafted_tokens_total;
            total.inc_by(drafted as u64);
            let total = &metrics.speculation_accepted_tokens_total;
            total.inc_by(accepted as u64);
        }
    }

    fn drop_drafts(&mut self) {
        self.tokens.truncate(self.tokens.len() - self.drafts);
        self.drafts = 0;
    }

    /// Whether the other side dropped its stream.
    pub fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Whether the last event is known.
    pub fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Takes the logits of the row at `position`, which say what comes after it: the next token of the prompt is scored
    /// if it has not been, and after the last token of all a new one is chosen and accepted.
    ///
    /// Returns whether the row behind it holds, if there is one in this step: it does if it ran on the very token that
    /// stands there now.
    pub fn advance(
        &mut self,
        position: usize,
        logits: &[f32],
        sampler: &mut Sampler,
        now: Instant,
        metrics: &Metrics,
    ) -> bool {
        if position + 1 < self.prompt_len {
            // Rows that are computed again after a preemption have been scored.
            if position == self.scored && self.scored < self.scores_wanted {
                let next = self.tokens[position + 1];
                self.scored += 1;
                match sampler.score(logits, next, self.scores.unwrap_or(0), &[]) {
                    Some(score) => self.report(TokenEvent::Score(Box::new(score))),
                    None => self.fail(TokenEvent::Failed, metrics),
                }
            }
            return !self.has_ended();
        }
        if self.max_tokens == 0 {
            self.end = Some(TokenEvent::Finished(FinishReason::Length));
            return false;
        }
        match self.choose(logits, sampler) {
            Ok(Some((token, score))) => {
                let was_drafted = self.accept(token, score, now, metrics);
                return was_drafted && !self.has_ended();
            }
            Ok(None) => {
                let adjustments = self.adjustments.as_ref();
                self.end = Some(if adjustments.is_some_and(Adjustments::must_go_on) {
                    TokenEvent::Contradicted
                } else {
                    // Whatever the settings left, the text so far is as long as they let it become.
                    TokenEvent::Finished(FinishReason::Complete)
                });
            }
            Err(problem) => self.fail(problem, metrics),
        }
        false
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
                let accepted = self.tokens.len() - self.drafts;
                let (tokens, stop_ids) = (&self.tokens[..accepted], &self.stop_ids);
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
            Some(top) => {
                let score = sampler.score(logits, token, top, &self.score_ids);
                Some(score.ok_or(NOT_FINITE)?)
            }
        };
        Ok(Some((token, score)))
    }

    /// Appends a generated token and reports it, or ends the generation if it is a stop id or the last one allowed.
    /// Returns whether it is what was drafted.
    fn accept(
        &mut self,
        token: u32,
        score: Option<Score>,
        now: Instant,
        metrics: &Metrics,
    ) -> bool {
        if let Some(score) = score {
            self.report(TokenEvent::Score(Box::new(score)));
        }
        if self.stop_ids.contains(&token) {
            self.end = Some(TokenEvent::Finished(FinishReason::Stop(token)));
            return false;
        }
        let was_drafted = self.append(token);
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
        was_drafted
    }

    /// Makes the next draft a token if it is `token`, or else puts `token` in the place of all drafts.
    fn append(&mut self, token: u32) -> bool {
        let next = self.tokens.len() - self.drafts;
        if self.drafts > 0 && self.tokens[next] == token {
            self.drafts -= 1;
            return true;
        }
        if let Some(guess) = self.guess.take() {
            self.acceptance.observe(1, usize::from(guess == token));
        }
        self.drop_drafts();
        self.tokens.push(token);
        false
    }

    /// Ends the generation without success.
    fn fail(&mut self, end: TokenEvent, metrics: &Metrics) {
        if end == TokenEvent::Failed {
            metrics.nonfinite_logits_total.inc();
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

impl Job for Sequence {
    fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    fn drafts(&self) -> usize {
        self.drafts
    }

    fn salt(&self) -> u128 {
        self.cache_salt
    }

    fn scores_prompt(&self) -> bool {
        self.scored < self.scores_wanted
    }
}

impl TokenStream {
    /// How many tokens of the prompt were found in the prefix cache. Known once the first event has come; zero before.
    pub fn cached_tokens(&self) -> usize {
        self.cached_tokens.load(Ordering::Relaxed)
    }

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
