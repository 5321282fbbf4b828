//! Preemption shows in the metrics, never in the tokens.

use std::sync::Arc;

use microgranite::engine::{Generation, Sampling, Settings, TokenEvent};
use microgranite::telemetry::Metrics;

use crate::checked_model::NAN_TOKEN;
use crate::harness::{
    LENGTH, collect, events, eventually, generation, kv_bytes, small, start, start_gated,
    start_recurrent, start_recurrent_with_snapshots, submit, within,
};

/// Six answers longer than the initial estimate, with all features that a generation can have.
fn long_answers() -> Vec<Generation> {
    let one = |seed: u32| {
        let mut one = generation(seed, 40 + 13 * seed as usize, 300 + 20 * seed as usize);
        if seed > 0 {
            one.sampling = Sampling {
                temperature: 0.8,
                top_p: 0.95,
                seed: u64::from(seed),
                ..Sampling::default()
            };
        }
        if seed.is_multiple_of(2) {
            one.scores = Some(2);
            one.score_prompt = true;
        }
        if seed == 3 {
            one.sampling.repetition_penalty = 1.2;
            one.sampling.frequency_penalty = 0.1;
        }
        one
    };
    (0..6).map(one).collect()
}

#[tokio::test]
async fn whoever_is_preempted_gets_the_same_tokens_and_scores() {
    let mut alone = Vec::new();
    for generation in long_answers() {
        let (engine, _) = start(small(), 20);
        alone.push(events(submit(&engine, generation)).await);
    }
    let start_free: fn(_, _) -> _ = start;
    for (prefix_cache, speculation, start) in [
        (false, 0, start_free),
        (true, 0, start_free),
        (false, 6, start_free),
        (true, 6, start_free),
        (true, 6, start_recurrent),
        (true, 6, start_recurrent_with_snapshots),
    ] {
        let settings = Settings {
            max_batch: 6,
            prefix_cache,
            speculation,
            ..small()
        };
        // By the initial estimate of 256 tokens, an answer takes 5 or 6 pages with its prompt: three are admitted, and
        // each grows to 8.
        let (engine, metrics) = start(settings, 16);
        let streams = engine.submit(long_answers()).unwrap();
        for (stream, alone) in streams.into_iter().zip(&alone) {
            assert_eq!(&events(stream).await, alone);
        }
        engine.drain();
        within(engine.stopped()).await;
        assert!(metrics.preemptions_total.get() > 0, "nobody was preempted");
        counted_once(&metrics, &long_answers());
    }
}

/// Recomputed tokens are not counted as tokens that clients requested.
fn counted_once(metrics: &Arc<Metrics>, generations: &[Generation]) {
    let prompts: usize = generations.iter().map(|one| one.prompt.len()).sum();
    let tokens: usize = generations.iter().map(|one| one.max_tokens).sum();
    assert_eq!(metrics.prompt_tokens_total.get(), prompts as u64);
    assert_eq!(metrics.generation_tokens_total.get(), tokens as u64);
    let started = metrics.queue_wait_seconds.get_sample_count();
    assert_eq!(started, generations.len() as u64);
    let first_tokens = metrics.time_to_first_token_seconds.get_sample_count();
    assert_eq!(first_tokens, generations.len() as u64);
    assert_eq!(kv_bytes(metrics, "used"), 0);
    assert_eq!(metrics.requests_running.get(), 0);
    assert_eq!(metrics.requests_waiting.get(), 0);
}

#[tokio::test]
async fn how_many_run_together_follows_how_long_answers_are() {
    let settings = Settings {
        max_batch: 16,
        step_tokens: 128,
        ..small()
    };
    // 32 pages are 2,048 tokens; at their maximal length only two of the sixteen would fit.
    let (engine, metrics, stepper) = start_gated(settings, 32);
    let ends_at = |seed: u32| 20 + seed;
    let chat = |seed: u32| generation(seed, 8, 900);
    let streams = engine.submit((0..16).map(chat).collect()).unwrap();
    stepper.began();
    // No answer has ended yet: at the initial estimate of 264 tokens, 5 pages, six fit.
    assert_eq!(metrics.requests_running.get(), 6);
    drop(stepper);
    // The clients disconnect after a sentence, as if the model had ended the text.
    let read = |seed: u32, mut stream: microgranite::engine::TokenStream| async move {
        for _ in 0..ends_at(seed) {
            let event = within(stream.next()).await;
            assert!(matches!(event, Some(TokenEvent::Token(_))), "{event:?}");
        }
    };
    let readers = streams
        .into_iter()
        .zip(0..)
        .map(|(stream, seed)| read(seed, stream));
    futures_util::future::join_all(readers).await;

    // They have disconnected, and their slots are free.
    eventually(|| metrics.requests_running.get() == 0 && metrics.requests_waiting.get() == 0);
    // Now the usual length is known: all of the next sixteen are admitted together.
    let (mut running, streams) = (0, engine.submit((0..16).map(chat).collect()).unwrap());
    let mut waiting = streams.into_iter().map(Some).collect::<Vec<_>>();
    for stream in waiting.iter_mut().flatten() {
        within(stream.next()).await;
        running = running.max(metrics.requests_running.get());
    }
    assert!(running == 16, "{running} of 16 ran together");
}

#[tokio::test]
async fn a_preempted_generation_whose_client_leaves_is_gone() {
    let settings = Settings {
        max_batch: 2,
        ..small()
    };
    let (engine, metrics) = start(settings, 12);
    let first = submit(&engine, generation(1, 60, 600));
    let mut second = submit(&engine, generation(2, 62, 600));
    while metrics.preemptions_total.get() == 0 {
        let event = within(second.next()).await;
        assert!(matches!(event, Some(TokenEvent::Token(_))), "{event:?}");
    }
    drop(second);
    assert_eq!(collect(first).await.1, LENGTH);
    engine.drain();
    within(engine.stopped()).await;
    assert_eq!(metrics.requests_waiting.get(), 0);
    assert_eq!(kv_bytes(&metrics, "used"), 0);
}

#[tokio::test]
async fn logits_that_are_not_finite_are_counted() {
    let (engine, metrics) = start(small(), 20);
    let mut bad = generation(1, 10, 5);
    bad.prompt[9] = NAN_TOKEN;
    let stream = submit(&engine, bad);
    assert_eq!(collect(stream).await, (Vec::new(), TokenEvent::Failed));
    assert_eq!(metrics.nonfinite_logits_total.get(), 1);
}
