//! Tests of the engine's promises to its callers.

mod constraints;
mod places;
mod stopping;

use std::sync::Arc;
use std::time::Duration;

use microgranite::engine::{
    Engine, FinishReason, Generation, PromptRows, Sampling, Settings, TokenEvent,
};
use microgranite::error::Error;
use microgranite::telemetry::Metrics;

use crate::checked_model::{CheckedModel, NAN_TOKEN, PAGE_BYTES, VOCAB, greedy, logits_after};
use crate::harness::{
    LENGTH, collect, events, eventually, generation, kv_bytes, small, start, start_gated, submit,
    within,
};

/// Prompt lengths around page and chunk edges, half of them sampled, from 1 to 60 tokens.
fn crowd() -> Vec<Generation> {
    let lengths = [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 300];
    (0..32)
        .map(|seed| {
            let prompt_len = lengths[seed as usize % lengths.len()];
            let mut generation = generation(seed, prompt_len, 1 + seed as usize * 37 % 60);
            if seed % 2 == 1 {
                generation.sampling = Sampling {
                    temperature: 0.8,
                    top_k: (seed as usize % 3) * 10,
                    top_p: 0.95,
                    min_p: 0.01,
                    seed: u64::from(seed),
                    ..Sampling::default()
                };
            }
            generation
        })
        .collect()
}

#[tokio::test]
async fn thirty_two_generations_together_get_what_each_gets_alone() {
    let (engine, _) = start(small(), 20);
    let mut alone = Vec::new();
    for generation in crowd() {
        alone.push(collect(submit(&engine, generation)).await);
    }
    let wide = Settings {
        max_batch: 32,
        max_queue: 0,
        ..Settings::default()
    };
    let narrow = Settings {
        max_queue: 28,
        step_tokens: 5,
        prompt_rows: PromptRows::Fixed(3),
        ..small()
    };
    // The second engine has pages for only a few of them at a time.
    for (settings, pages) in [(wide, 200), (narrow, 8)] {
        let (engine, metrics) = start(settings, pages);
        let streams = engine.submit(crowd()).unwrap();
        for (stream, alone) in streams.into_iter().zip(&alone) {
            assert_eq!(&collect(stream).await, alone);
        }
        assert_eq!(metrics.requests_running.get(), 0);
        assert_eq!(kv_bytes(&metrics, "used"), 0);
    }
}

#[tokio::test]
async fn greedy_tokens_are_the_most_likely_ones() {
    let (engine, _) = start(small(), 20);
    for generation in crowd() {
        if generation.sampling.temperature == 0.0 {
            let expected = greedy(&generation.prompt, generation.max_tokens);
            let answer = collect(submit(&engine, generation)).await;
            assert_eq!(answer, (expected, LENGTH));
        }
    }
}

#[tokio::test]
async fn a_stop_id_ends_the_generation_and_is_not_reported() {
    let (engine, _) = start(small(), 20);
    let plain = generation(1, 10, 50);
    let tokens = greedy(&plain.prompt, 50);
    let stop = tokens[20];
    let first = tokens.iter().position(|&token| token == stop).unwrap();
    let stopped = Generation {
        stop_ids: vec![NAN_TOKEN, stop],
        ..plain
    };
    let answer = collect(submit(&engine, stopped)).await;
    let end = TokenEvent::Finished(FinishReason::Stop(stop));
    assert_eq!(answer, (tokens[..first].to_vec(), end));
}

#[tokio::test]
async fn a_generation_may_fill_the_whole_context_or_generate_nothing() {
    let (engine, _) = start(small(), 4);
    assert_eq!(
        engine.limits().context_length,
        4 * 64,
        "what the pages hold"
    );
    let full = generation(5, 200, 56);
    let expected = greedy(&full.prompt, 56);
    let answer = collect(submit(&engine, full)).await;
    assert_eq!(answer, (expected, LENGTH));
    let nothing = collect(submit(&engine, generation(5, 256, 0))).await;
    assert_eq!(nothing, (Vec::new(), LENGTH));
    let (engine, _) = start(small(), 400);
    assert_eq!(
        engine.limits().context_length,
        1000,
        "what the model can do"
    );
}

#[tokio::test]
async fn half_of_the_clients_leave_and_the_other_half_notice_nothing() {
    let settings = Settings {
        max_queue: 40,
        ..small()
    };
    let (engine, metrics) = start(settings, 30);
    let streams = engine.submit(crowd()).unwrap();
    let mut staying = Vec::new();
    for (index, (mut stream, generation)) in streams.into_iter().zip(crowd()).enumerate() {
        if index % 4 == 0 {
            stream.next().await;
        } else if index % 4 == 2 {
            staying.push((stream, generation));
        }
        // The others are cancelled at once, some of them while they wait.
    }
    for (stream, generation) in staying {
        let expected = greedy(&generation.prompt, generation.max_tokens);
        assert_eq!(collect(stream).await, (expected, LENGTH));
    }
    engine.drain();
    within(engine.stopped()).await;
    assert_eq!(metrics.requests_running.get(), 0);
    assert_eq!(metrics.requests_waiting.get(), 0);
    assert_eq!(kv_bytes(&metrics, "used"), 0);
}

#[tokio::test]
async fn metrics_count_every_token_once() {
    let (engine, metrics) = start(small(), 20);
    let reserved = metrics.kv_cache_bytes.with_label_values(&["reserved"]);
    assert_eq!(reserved.get(), 20 * PAGE_BYTES as i64);
    let streams = engine
        .submit(vec![
            generation(1, 100, 30),
            generation(2, 7, 1),
            generation(3, 65, 12),
        ])
        .unwrap();
    for stream in streams {
        collect(stream).await;
    }
    let (prompt, generated) = (100 + 7 + 65, 30 + 1 + 12);
    assert_eq!(metrics.prompt_tokens_total.get(), prompt);
    assert_eq!(metrics.generation_tokens_total.get(), generated);
    assert_eq!(metrics.queue_wait_seconds.get_sample_count(), 3);
    let first = &metrics.time_to_first_token_seconds;
    assert_eq!(first.get_sample_count(), 3);
    let between = &metrics.inter_token_latency_seconds;
    assert_eq!(between.get_sample_count(), generated - 3);
    // The last token of each generation is never computed.
    let rows = metrics.batch_rows.get_sample_sum();
    assert_eq!(rows, (prompt + generated - 3) as f64);
}

#[tokio::test]
async fn the_age_of_a_step_shows_an_engine_that_is_stuck() {
    let (engine, _, stepper) = start_gated(small(), 20);
    assert_eq!(engine.step_age(), None);
    let stream = submit(&engine, generation(1, 5, 1));
    stepper.began();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(engine.step_age().unwrap() >= Duration::from_millis(20));
    stepper.go();
    collect(stream).await;
    eventually(|| engine.step_age().is_none());
}

#[test]
fn limits_say_which_generations_can_be_submitted() {
    let (engine, _) = start(small(), 4);
    let limits = engine.limits();
    assert_eq!((limits.vocab_size, limits.context_length), (VOCAB, 256));
    assert_eq!((limits.max_batch, limits.max_queue), (4, 4));
    assert!(limits.allow(&generation(1, 200, 56)));
    assert!(!limits.allow(&generation(1, 200, 57)));
    assert!(!limits.allow(&generation(1, 257, 0)));
    assert!(!limits.allow(&generation(1, 0, 5)));
    assert!(!limits.allow(&generation(1, 1, usize::MAX)));
    let mut unknown = generation(1, 5, 5);
    unknown.prompt[2] = VOCAB as u32;
    assert!(!limits.allow(&unknown));
}

#[test]
#[should_panic(expected = "without being checked")]
fn an_unchecked_generation_is_a_defect_of_the_caller() {
    let (engine, _) = start(small(), 4);
    let _ = engine.submit(vec![generation(1, 200, 57)]);
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let refused = |settings: Settings, pages| {
        let model = Box::new(CheckedModel::new(&settings, pages));
        let error = Engine::start(model, settings, Arc::new(Metrics::new())).unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{error}");
    };
    let no_batch = Settings {
        max_batch: 0,
        ..small()
    };
    let no_rows = Settings {
        step_tokens: 3,
        ..small()
    };
    let no_prompts = Settings {
        prompt_rows: PromptRows::Fixed(0),
        ..small()
    };
    refused(no_batch, 4);
    refused(no_rows, 4);
    refused(no_prompts, 4);
    for factor in [0.99, -1.0, f64::NAN] {
        let prompt_rows = PromptRows::Slowdown(factor);
        refused(
            Settings {
                prompt_rows,
                ..small()
            },
            4,
        );
    }
    refused(small(), 0);
}

/// The log-probability of `token` after `history`, worked out without an engine.
fn log_probability(history: &[u32], token: u32) -> f64 {
    let logits = logits_after(history);
    let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    f64::from(logits[token as usize]) - total.ln()
}

#[tokio::test]
async fn prompts_and_outputs_are_scored_the_same_however_the_steps_are_cut() {
    for max_tokens in [0, 5] {
        let scored = |seed| Generation {
            scores: Some(2),
            score_prompt: true,
            ..generation(seed, 100, max_tokens)
        };
        let roomy = Settings {
            step_tokens: 512,
            ..small()
        };
        let alone = events(submit(&start(roomy, 20).0, scored(1))).await;

        let (engine, _) = start(small(), 20);
        let others = [2, 3].map(|seed| submit(&engine, generation(seed, 70, 30)));
        assert_eq!(events(submit(&engine, scored(1))).await, alone);
        for other in others {
            collect(other).await;
        }

        let prompt = scored(1).prompt;
        let mut sequence = prompt.clone();
        sequence.extend(greedy(&prompt, max_tokens));
        let mut expected = sequence.iter().enumerate().skip(1);
        let mut events = alone.into_iter();
        for (at, &token) in expected.by_ref() {
            let Some(TokenEvent::Score(score)) = events.next() else {
                panic!("a score for the token at {at}");
            };
            let exact = log_probability(&sequence[..at], token);
            assert_eq!(score.token.0, token);
            assert!((f64::from(score.token.1) - exact).abs() < 1e-5);
            assert_eq!(score.top.len(), 2);
            assert!(score.top[0].1 >= score.top[1].1 && score.top[0].1 >= score.token.1);
            if at >= prompt.len() {
                assert_eq!(score.top[0], score.token, "greedy, to the bit");
                assert_eq!(events.next(), Some(TokenEvent::Token(token)));
            }
        }
        assert_eq!(events.next(), Some(LENGTH));
        assert_eq!(events.next(), None);
    }
}

#[tokio::test]
async fn penalties_bans_and_least_lengths_depend_on_the_own_sequence_alone() {
    let plain = generation(1, 40, 30);
    let first = greedy(&plain.prompt, 1)[0];
    let adjusted = Generation {
        sampling: Sampling {
            temperature: 0.7,
            seed: 3,
            repetition_penalty: 1.3,
            frequency_penalty: 0.4,
            presence_penalty: -0.2,
            logit_bias: vec![(5, 3.0), (9, -100.0)],
            banned_sequences: vec![vec![first]],
            ..Sampling::default()
        },
        stop_ids: (0..8).collect(),
        min_tokens: 20,
        ..plain
    };
    let alone = collect(submit(&start(small(), 20).0, adjusted.clone())).await;
    assert!(alone.0.len() >= 20 && !alone.0.contains(&first) && !alone.0.contains(&9));
    assert!(
        alone.0.iter().take(20).all(|&token| token >= 8),
        "no stop id early"
    );

    let (engine, _) = start(small(), 20);
    let others = [4, 5, 6].map(|seed| submit(&engine, generation(seed, 70, 30)));
    assert_eq!(collect(submit(&engine, adjusted)).await, alone);
    for other in others {
        collect(other).await;
    }
}
