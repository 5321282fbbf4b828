//! Prefix caching and speculation show in the computed rows and in the metrics, never in the tokens.

use std::sync::Arc;
use std::time::Duration;

use microgranite::engine::{Engine, Generation, PromptRows, Sampling, Settings, TokenEvent};
use microgranite::model::{Forward, PAGE_TOKENS, Rewind, Span};
use microgranite::telemetry::Metrics;

use crate::checked_model::{CheckedModel, PAGE_BYTES, VOCAB, greedy};
use crate::harness::{
    LENGTH, collect, generation, kv_bytes, small, start, start_gated, start_recurrent,
    start_with_snapshots, submit, within,
};

fn caching() -> Settings {
    Settings {
        prefix_cache: true,
        ..small()
    }
}

#[tokio::test]
async fn a_prompt_that_was_seen_is_not_computed_again() {
    let (engine, metrics, stepper) = start_gated(caching(), 20);
    let first = submit(&engine, generation(1, 150, 1));
    assert_eq!(stepper.began(), [(0, 64)]);
    stepper.go();
    assert_eq!(stepper.began(), [(64, 64)]);
    stepper.go();
    assert_eq!(stepper.began(), [(128, 22)]);
    stepper.go();
    assert_eq!(first.cached_tokens(), 0);
    let first = collect(first).await;
    assert_eq!(kv_bytes(&metrics, "cached"), 2 * PAGE_BYTES as i64);

    let mut second = submit(&engine, generation(1, 150, 1));
    assert_eq!(stepper.began(), [(128, 22)]);
    assert_eq!(kv_bytes(&metrics, "cached"), 0);
    assert_eq!(kv_bytes(&metrics, "used"), 3 * PAGE_BYTES as i64);
    stepper.go();
    within(second.next()).await;
    assert_eq!(second.cached_tokens(), 128);
    assert_eq!(within(second.next()).await, Some(first.1));

    assert_eq!(metrics.prefix_cache_queries_total.get(), 300);
    assert_eq!(metrics.prefix_cache_hits_total.get(), 128);
    assert_eq!(metrics.prompt_tokens_total.get(), 300);
    assert_eq!(metrics.queue_wait_seconds.get_sample_count(), 2);
    assert_eq!(metrics.batch_rows.get_sample_sum(), 172.0);
}

#[tokio::test]
async fn prompts_that_come_together_and_begin_alike_are_computed_once() {
    let (engine, metrics, stepper) = start_gated(caching(), 40);
    let first = submit(&engine, generation(1, 150, 1));
    assert_eq!(stepper.began(), [(0, 64)]);
    // The same prompt twice more, and one that differs in its second page, while the first page is being computed.
    let second = submit(&engine, generation(1, 150, 1));
    let third = submit(&engine, generation(1, 150, 1));
    let mut other = generation(1, 150, 1);
    other.prompt[100] ^= 1;
    let expected_of_other = greedy(&other.prompt, 1);
    let fourth = submit(&engine, other);
    stepper.go();
    // The two wait for the second page; the third already has the first one, and no rows are left for it.
    assert_eq!(stepper.began(), [(64, 64)]);
    stepper.go();
    assert_eq!(stepper.began(), [(128, 22), (128, 22), (128, 20)]);
    stepper.go();
    assert_eq!(stepper.began(), [(148, 2), (64, 62)]);
    stepper.go();
    assert_eq!(stepper.began(), [(126, 24)]);
    stepper.go();
    let expected = greedy(&generation(1, 150, 1).prompt, 1);
    let cached = [&first, &second, &third, &fourth].map(|stream| stream.cached_tokens());
    assert_eq!(cached, [0, 128, 128, 64]);
    for stream in [first, second, third] {
        assert_eq!(collect(stream).await, (expected.clone(), LENGTH));
    }
    assert_eq!(collect(fourth).await, (expected_of_other, LENGTH));
    assert_eq!(metrics.prefix_cache_hits_total.get(), 2 * 128 + 64);
    assert_eq!(metrics.queue_wait_seconds.get_sample_count(), 4);
    assert_eq!(kv_bytes(&metrics, "used"), 0);
}

#[tokio::test]
async fn a_cache_too_small_for_all_prompts_forgets_and_stays_right() {
    let (engine, metrics) = start(caching(), 6);
    for round in 0..3 {
        for seed in [1, 2, 1, 3] {
            let one = generation(seed, 200, 20);
            let expected = greedy(&one.prompt, 20);
            let answer = collect(submit(&engine, one)).await;
            assert_eq!(answer, (expected, LENGTH), "seed {seed} in round {round}");
        }
    }
    // Three prompts of three full pages each share six pages: some are found, and some were evicted.
    assert!(metrics.prefix_cache_hits_total.get() > 0);
    assert!(metrics.prefix_cache_evictions_total.get() > 0);
    assert_eq!(kv_bytes(&metrics, "used"), 0);
    assert!(kv_bytes(&metrics, "cached") > 0);
    engine.drain();
    within(engine.stopped()).await;
}

#[tokio::test]
async fn a_model_that_cannot_go_back_shares_no_beginnings() {
    let settings = Settings {
        prefix_cache: true,
        speculation: 8,
        ..small()
    };
    let (engine, metrics) = start_recurrent(settings, 40);
    // The same prompt three times, as for three choices, and again when its pages are full; it repeats itself, so that
    // there would be much to guess.
    let mut prompt = generation(1, 10, 1).prompt.repeat(15);
    prompt.truncate(150);
    let one = Generation {
        prompt,
        max_tokens: 40,
        ..Generation::default()
    };
    let expected = (greedy(&one.prompt, 40), LENGTH);
    for streams in [vec![one.clone(), one.clone(), one.clone()], vec![one]] {
        for stream in engine.submit(streams).unwrap() {
            assert_eq!(collect(stream).await, expected);
        }
    }
    assert_eq!(metrics.prefix_cache_hits_total.get(), 0);
    assert_eq!(kv_bytes(&metrics, "cached"), 0);
}

/// The answer to `prompt`, and how many of its tokens were not computed again.
async fn answer(engine: &Engine, prompt: &[u32], max_tokens: usize) -> (Vec<u32>, usize) {
    let mut stream = submit(
        engine,
        Generation {
            prompt: prompt.to_vec(),
            max_tokens,
            ..Generation::default()
        },
    );
    let mut tokens = Vec::new();
    loop {
        match within(stream.next()).await {
            Some(TokenEvent::Token(token)) => tokens.push(token),
            Some(TokenEvent::Finished(_)) => return (tokens, stream.cached_tokens()),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_conversation_goes_on_from_the_snapshots_of_the_turn_before() {
    let (engine, _) = start_with_snapshots(caching(), 40, 3);
    let mut conversation = generation(1, 100, 1).prompt;
    let mut computed_before = 0;
    for turn in 0..5 {
        let (tokens, cached) = answer(&engine, &conversation, 50).await;
        assert_eq!(tokens, greedy(&conversation, 50), "turn {turn}");
        // All but the last token of the answer was computed, up to the last full page.
        assert_eq!(
            cached,
            computed_before / PAGE_TOKENS * PAGE_TOKENS,
            "turn {turn}"
        );
        conversation.extend(&tokens);
        computed_before = conversation.len() - 1;
        conversation.extend(generation(2 + turn, 30, 1).prompt);
    }
    // The same prompt again goes on where it ended, whatever was answered since.
    let (tokens, _) = answer(&engine, &conversation, 10).await;
    let (again, cached) = answer(&engine, &conversation, 10).await;
    assert_eq!(tokens, again);
    assert_eq!(cached, (conversation.len() - 1) / PAGE_TOKENS * PAGE_TOKENS);
}

#[tokio::test]
async fn what_prompts_have_in_common_is_kept_from_the_second_on() {
    let (engine, _) = start_with_snapshots(caching(), 40, 8);
    let common = generation(1, 200, 1).prompt;
    let mut cached = Vec::new();
    for client in 0..4 {
        let prompt = [common.clone(), generation(10 + client, 100, 1).prompt].concat();
        let (tokens, reused) = answer(&engine, &prompt, 5).await;
        assert_eq!(tokens, greedy(&prompt, 5));
        cached.push(reused);
    }
    // The second one finds the common pages but no state behind them, and leaves one there.
    assert_eq!(cached, [0, 0, 192, 192]);
}

#[tokio::test]
async fn choices_of_one_prompt_compute_it_once() {
    let (engine, metrics) = start_with_snapshots(caching(), 40, 8);
    let one = generation(1, 150, 20);
    let expected = (greedy(&one.prompt, 20), LENGTH);
    let streams = engine.submit(vec![one.clone(), one.clone(), one.clone()]);
    for stream in streams.unwrap() {
        assert_eq!(collect(stream).await, expected);
    }
    assert_eq!(metrics.prefix_cache_hits_total.get(), 2 * 128);
}

/// A recurrent model that says it can go back: what the checks are worth shows where the engine believes it.
struct Boaster(CheckedModel);

impl Forward for Boaster {
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    fn context_length(&self) -> usize {
        self.0.context_length()
    }

    fn page_count(&self) -> usize {
        self.0.page_count()
    }

    fn page_bytes(&self) -> usize {
        self.0.page_bytes()
    }

    fn rewind(&self) -> Rewind {
        Rewind::Free
    }

    fn forward(&mut self, spans: &[Span<'_>]) -> &[f32] {
        self.0.forward(spans)
    }
}

#[tokio::test]
async fn a_recurrent_model_notices_a_beginning_that_another_sequence_computed() {
    let model = Boaster(CheckedModel::recurrent(&caching(), 20, 0));
    let engine = Engine::start(Box::new(model), caching(), Arc::new(Metrics::new())).unwrap();
    let first = collect(submit(&engine, generation(1, 150, 1))).await;
    assert_eq!(first.1, LENGTH);
    // Its two full pages are found, but what the sequence's slot holds is not what follows them.
    let second = collect(submit(&engine, generation(1, 150, 1))).await;
    assert_eq!(second, (Vec::new(), TokenEvent::Failed));
}

/// A model that repeats itself, except for an occasional surprise.
struct Parrot {
    checked: CheckedModel,
    logits: Vec<f32>,
    /// One of this many positions gets an unpredictable token.
    surprise: usize,
    /// The time per row, in addition to a millisecond per step.
    row_time: Duration,
}

impl Parrot {
    fn next(&self, position: usize) -> usize {
        match position % self.surprise {
            0 => 40 + (position.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % 50,
            place => 10 + place % 3,
        }
    }
}

impl Forward for Parrot {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn context_length(&self) -> usize {
        self.checked.context_length()
    }

    fn page_count(&self) -> usize {
        self.checked.page_count()
    }

    fn page_bytes(&self) -> usize {
        PAGE_BYTES
    }

    fn rewind(&self) -> Rewind {
        Rewind::Free
    }

    fn forward(&mut self, spans: &[Span<'_>]) -> &[f32] {
        self.checked.forward(spans);
        let rows: usize = spans.iter().map(|span| span.tokens.len()).sum();
        std::thread::sleep(Duration::from_millis(1) + self.row_time * rows as u32);
        self.logits.clear();
        for span in spans {
            let end = span.start + span.tokens.len();
            for position in end - span.logit_rows..end {
                let next = self.next(position + 1);
                // At temperature 1 this token is sampled most of the time.
                let logit = |id| if id == next { 8.0 } else { id as f32 / 100.0 };
                self.logits.extend((0..VOCAB).map(logit));
            }
        }
        &self.logits
    }
}

async fn parrot(
    speculation: usize,
    surprise: usize,
    row_time: Duration,
    sampling: &Sampling,
) -> (Vec<u32>, Arc<Metrics>) {
    let settings = Settings {
        speculation,
        prompt_rows: PromptRows::Slowdown(3.0),
        ..small()
    };
    let model = Parrot {
        checked: CheckedModel::new(&settings, 20),
        logits: Vec::new(),
        surprise,
        row_time,
    };
    let metrics = Arc::new(Metrics::new());
    let engine = Engine::start(Box::new(model), settings, Arc::clone(&metrics)).unwrap();
    let mut one = generation(1, 30, 300);
    one.sampling = sampling.clone();
    let (tokens, end) = collect(submit(&engine, one)).await;
    assert_eq!(end, LENGTH);
    (tokens, metrics)
}

#[tokio::test]
async fn a_text_that_repeats_itself_takes_a_fraction_of_the_steps_and_stays_the_same() {
    let greedy = Sampling::default();
    let seeded = Sampling {
        temperature: 1.0,
        seed: 7,
        ..Sampling::default()
    };
    for sampling in [greedy, seeded] {
        for surprise in [1000, 17] {
            let (plain, without) = parrot(0, surprise, Duration::ZERO, &sampling).await;
            let (tokens, with) = parrot(8, surprise, Duration::ZERO, &sampling).await;
            assert_eq!(tokens, plain);
            let steps = |metrics: &Metrics| metrics.batch_rows.get_sample_count();
            assert_eq!(steps(&without), 300);
            // About 50 or 110; more on a machine so busy that steps seem longer than they are.
            assert!(steps(&with) < 250, "{} steps", steps(&with));
            let drafted = with.speculation_drafted_tokens_total.get();
            let accepted = with.speculation_accepted_tokens_total.get();
            assert_eq!(accepted, 300 - steps(&with));
            assert!(accepted <= drafted);
            assert_eq!(with.generation_tokens_total.get(), 300);
            assert_eq!(without.speculation_drafted_tokens_total.get(), 0);
        }
    }
}

#[tokio::test]
async fn guesses_that_are_always_wrong_are_soon_left_alone() {
    // What followed the last three tokens before never follows them now, and drafting doubles a step's time.
    let row_time = Duration::from_micros(500);
    let (tokens, metrics) = parrot(8, 4, row_time, &Sampling::default()).await;
    assert_eq!(tokens.len(), 300);
    let drafted = metrics.speculation_drafted_tokens_total.get();
    // Drafting regardless would give 600.
    assert!((1..300).contains(&drafted), "{drafted} drafts");
}
