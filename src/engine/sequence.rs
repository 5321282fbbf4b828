//! All that is known about one generation, except for its slot and pages, which belong to the scheduler.

use std::time::{Duration, Instant};

use rand_pcg::Pcg64;
use tokio::sync::mpsc;
use tracing::error;

use super::adjust::{Adjustments, Undecided};
use super::receipt::OpenReceipt;
use super::request::{FinishReason, Flow, Generation, Sampling, Score, TokenEvent};
use super::sampler::{self, Sampler};
use super::scheduler::Job;
use super::speculation::{self, Acceptance, DraftBudget};
use crate::telemetry::Metrics;

/// One generation on the engine's side of the thread boundary.
#[derive(Debug)]
pub(super) struct Sequence {
    /// The prompt's tokens, those generated so far, and drafts. Its capacity is enough for all tokens to come.
    tokens: Vec<u32>,
    /// How many of the last `tokens` are drafts that have not been checked.
    drafts: usize,
    /// The guess for the next token, if it is not run as a draft: it is scored all the same.
    guess: Option<u32>,
    acceptance: Acceptance,
    prompt_len: usize,
    max_tokens: usize,
    stop_ids: Vec<u32>,
    /// How the next token is chosen.
    sampling: Sampling,
    /// The random generator for sampling.
    generator: Pcg64,
    /// What changes the logits before sampling.
    adjustments: Option<Adjustments>,
    scores: Option<usize>,
    score_ids: Vec<u32>,
    /// How many tokens of the prompt are to be scored.
    scores_wanted: usize,
    scored: usize,
    cache_salt: u128,
    flow: Flow,
    priority: i64,
    /// Positions that have been computed or were found in the prefix cache. A preempted sequence computes some of them
    /// again.
    computed: usize,
    /// The channel for events. Its capacity is enough for all of them, so sending never blocks.
    events: mpsc::Sender<TokenEvent>,
    /// With more unread events than this it is paused.
    most_unread: usize,
    receipt: OpenReceipt,
    last_token: Option<Instant>,
    /// Whether it gives way to every sequence that is not in the background.
    is_background: bool,
    /// The last event, once it is known.
    end: Option<TokenEvent>,
}

/// One generation on the caller's side: its events, in order. Dropping it cancels the generation in any state: the
/// engine frees its slot and pages before the next step.
#[derive(Debug)]
pub struct TokenStream {
    events: mpsc::Receiver<TokenEvent>,
    receipt: OpenReceipt,
    ended: bool,
}

/// Unread events that a generation may have in any case: those of a few steps, however many alternatives each has.
const LEAST_UNREAD: usize = 32;

/// How many events of a generation take so many `bytes`.
fn events_in(bytes: usize, generation: &Generation) -> usize {
    let score = generation.scores.map(|top| {
        let top = top.max(generation.score_ids.len());
        size_of::<Score>() + top * size_of::<(u32, f32)>()
    });
    // A score comes with each token.
    let (each, events) = match score {
        None => (size_of::<TokenEvent>(), 1),
        Some(score) => (2 * size_of::<TokenEvent>() + score, 2),
    };
    bytes / each * events
}

impl Sequence {
    /// The engine's and the caller's side of a generation. With more than `max_unread_bytes` of unread events it is
    /// paused.
    pub fn new(
        mut generation: Generation,
        arrived: Instant,
        max_unread_bytes: usize,
    ) -> (Self, TokenStream) {
        // Every token, the end, and a score for each token if requested.
        let mut room = generation.max_tokens + 1;
        if generation.scores.is_some() {
            room += generation.max_tokens;
        }
        if generation.score_prompt {
            room += generation.prompt.len();
        }
        let (events, receiver) = mpsc::channel(room);
        let most_unread = events_in(max_unread_bytes, &generation).max(LEAST_UNREAD);
        let receipt = OpenReceipt::new(arrived);
        let adjustments = Adjustments::new(&mut generation);
        let mut tokens = generation.prompt;
        let prompt_len = tokens.len();
        // Reserved here so that no step allocates. It is at most the context length, and untouched memory costs
        // nothing.
        tokens.reserve_exact(generation.max_tokens);
        let sequence = Self {
            adjustments,
            scores: generation.scores,
            score_ids: generation.score_ids,
            // Nothing precedes the first token, so nothing predicts it.
            scores_wanted: if generation.score_prompt {
                prompt_len - 1
            } else {
                0
            },
            scored: 0,
            cache_salt: generation.cache_salt,
            flow: generation.flow,
            priority: generation.priority,
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
            most_unread,
            receipt: receipt.clone(),
            last_token: None,
            is_background: false,
            end: None,
        };
        let stream = TokenStream {
            events: receiver,
            receipt,
            ended: false,
        };
        (sequence, stream)
    }

    /// The same, in the background.
    pub const fn in_background(mut self) -> Self {
        self.is_background = true;
        self
    }

    /// Ends a sequence in the background, because another has come.
    pub fn displace(mut self) {
        self.end = Some(TokenEvent::Displaced);
        self.finish();
    }

    pub const fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    pub const fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// How many tokens it has generated.
    pub const fn generated(&self) -> usize {
        self.tokens.len() - self.drafts - self.prompt_len
    }

    /// Whether none of it has been computed or found in the prefix cache.
    pub const fn is_new(&self) -> bool {
        self.computed == 0
    }

    /// Records that its first step begins, and that the first `cached` tokens of the prompt came from the prefix cache.
    /// Returns how long it has waited.
    pub fn begin(&mut self, cached: usize, now: Instant) -> Duration {
        self.computed = cached;
        let receipt = self.receipt.update(|receipt| {
            receipt.began = Some(now);
            receipt.cached_tokens = cached;
        });
        receipt.queue().unwrap_or_default()
    }

    /// Adds its share of a step.
    pub fn add_cpu_seconds(&self, seconds: f64) {
        self.receipt
            .update(|receipt| receipt.cpu_seconds += seconds);
    }

    /// Records that all positions before `end` are computed. Returns how many tokens of the prompt are newly computed.
    pub fn set_computed(&mut self, end: usize) -> usize {
        let before = self.computed.min(self.prompt_len);
        self.computed = self.computed.max(end);
        self.computed.min(self.prompt_len) - before
    }

    /// Drafts the next tokens: at most `most`, and as many as `budget` expects to pay.
    pub fn speculate(&mut self, budget: &mut DraftBudget<'_>, most: usize) {
        let Some(from) = speculation::lookup(&self.tokens) else {
            self.guess = None;
            return;
        };
        // The last allowed token is never computed, so there is nothing to gain by drafting it.
        let useful = (self.max_tokens - self.generated()).saturating_sub(1);
        let drafts = budget.drafts(&self.acceptance, most.min(useful));
        self.guess = (drafts == 0).then(|| self.tokens[from]);
        // One by one: the copy of a text that repeats itself runs on into its own drafts.
        for index in from..from + drafts {
            self.tokens.push(self.tokens[index]);
        }
        self.drafts = drafts;
        budget.add(&self.acceptance, drafts);
    }

    /// Ends the drafts of this step: of `drafted` drafts, the first `accepted` were right.
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

    /// Whether the caller dropped its stream.
    pub fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Events of generated tokens that the caller has not taken yet. Scores of the prompt are not among them: however
    /// many one step has, the caller takes them before it answers.
    fn unread(&self) -> usize {
        let unread = self.events.max_capacity() - self.events.capacity();
        let each = 1 + usize::from(self.scores.is_some());
        unread.min(each * self.generated())
    }

    /// Whether the last event is known.
    pub fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Takes the logits of the row at `position`, which predict the token after it. Within the prompt, that token is
    /// scored if it has not been; at the last token of all, a new one is chosen and accepted.
    ///
    /// Returns whether the next row of this step, if there is one, is valid: it is if it was computed for the token
    /// that was chosen.
    pub fn advance(
        &mut self,
        position: usize,
        logits: &[f32],
        sampler: &mut Sampler,
        now: Instant,
        metrics: &Metrics,
    ) -> bool {
        if position + 1 < self.prompt_len {
            // Rows that are recomputed after a preemption have already been scored.
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
        // The last row of all: a token comes of it, or the end.
        self.receipt.update(|receipt| {
            receipt.answered = receipt.answered.or(Some(now));
            receipt.ended = Some(now);
        });
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
                    // The settings exclude every further token, so the text is complete.
                    TokenEvent::Finished(FinishReason::Complete)
                });
            }
            Err(problem) => self.fail(problem, metrics),
        }
        false
    }

    /// The next token, and its score if requested. `None` if every token is excluded.
    ///
    /// Depends only on the logits and on the tokens accepted so far; draws at most one random number.
    fn choose(
        &mut self,
        logits: &[f32],
        sampler: &mut Sampler,
    ) -> Result<Option<(u32, Option<Score>)>, TokenEvent> {
        const NOT_FINITE: TokenEvent = TokenEvent::Failed;
        let (sampling, generator) = (&self.sampling, &mut self.generator);
        let forced = self.adjustments.as_ref().and_then(Adjustments::forced);
        let token = match &mut self.adjustments {
            _ if forced.is_some() => forced,
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
    /// Returns whether it matches the draft.
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
        let heeds = |all: &Adjustments| all.heeds(token);
        if self.stop_ids.contains(&token) && self.adjustments.as_ref().is_none_or(heeds) {
            self.end = Some(TokenEvent::Finished(FinishReason::Stop(token)));
            return false;
        }
        let was_drafted = self.append(token);
        self.report(TokenEvent::Token(token));
        metrics.generation_tokens_total.inc();
        let (histogram, time) = match self.last_token.replace(now) {
            None => {
                let time = self.receipt.so_far().first_token();
                (
                    &metrics.time_to_first_token_seconds,
                    time.unwrap_or_default(),
                )
            }
            Some(last) => (&metrics.inter_token_latency_seconds, now - last),
        };
        histogram.observe(time.as_secs_f64());
        let adjustments = self.adjustments.as_mut();
        if adjustments.is_some_and(|all| all.accept(token, &self.sampling)) {
            self.end = Some(TokenEvent::Finished(FinishReason::Complete));
        } else if self.generated() == self.max_tokens {
            self.end = Some(TokenEvent::Finished(FinishReason::Length));
        }
        was_drafted
    }

    /// Accepts the next draft if it is `token`; otherwise replaces all drafts with `token`.
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

    /// Ends the generation with a failure.
    fn fail(&mut self, end: TokenEvent, metrics: &Metrics) {
        if end == TokenEvent::Failed {
            metrics.nonfinite_logits_total.inc();
            let generated = self.generated();
            error!(generated, "logits are not finite; this generation fails");
        }
        self.end = Some(end);
    }

    /// Reports the end. If a sequence is dropped without this, its stream reports a failure.
    pub fn finish(mut self) {
        if let Some(end) = self.end.take() {
            self.report(end);
        }
    }

    /// The receiver may have been dropped, which the next step will notice; the channel is never full.
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

    fn flow(&self) -> Flow {
        self.flow
    }

    fn priority(&self) -> i64 {
        self.priority
    }

    fn is_background(&self) -> bool {
        self.is_background
    }

    fn is_ahead(&self) -> bool {
        self.unread() > self.most_unread
    }

    fn may_go_on(&self) -> bool {
        // Rarely enough: each time, what the prefix cache has not kept of the text is computed again.
        self.unread() <= self.most_unread / 4
    }

    fn scores_prompt(&self) -> bool {
        self.scored < self.scores_wanted
    }
}

impl TokenStream {
    /// How many tokens of the prompt were found in the prefix cache. Known once the first event has come; zero before.
    pub fn cached_tokens(&self) -> usize {
        self.receipt.so_far().cached_tokens
    }

    /// What the generation takes.
    pub fn receipt(&self) -> OpenReceipt {
        self.receipt.clone()
    }

    /// The next event, or `None` after the last one.
    ///
    /// Cancel safe: if the future is dropped before it is ready, no event is lost.
    pub async fn next(&mut self) -> Option<TokenEvent> {
        if self.ended {
            return None;
        }
        // The engine reports the end of every generation, unless it has died.
        let event = self.events.recv().await.unwrap_or(TokenEvent::Failed);
        self.ended = !matches!(event, TokenEvent::Token(_) | TokenEvent::Score(_));
        Some(event)
    }
}
