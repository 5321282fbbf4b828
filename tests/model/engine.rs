//! Whole generations on the real int8 model: concurrent generations change no token.

use std::sync::Arc;

use microgranite::engine::{Engine, Generation, PromptRows, Sampling, Settings, TokenEvent};
use microgranite::model::{self, Granite};
use microgranite::telemetry::Metrics;
use proptest::prelude::*;
use tokio::runtime;

use super::{checkpoint, ids};

/// Bytes of a KV page of the fixture: 2 layers, 2 heads, keys and values of 64 tokens, each 32 codes and a scale.
const PAGE_BYTES: u64 = 2 * 2 * 2 * 64 * (32 + 4);

fn load(threads: usize, pages: usize) -> Granite {
    let settings = model::Settings {
        threads,
        slots: 4,
        snapshots: 0,
        kv_bytes: pages as u64 * PAGE_BYTES,
        context: None,
        weights: model::Placement::default(),
    };
    model::load(&checkpoint("granite-3-tiny"), &settings, &mut |_, _| ())
        .expect("the fixture loads")
}

/// Prompts that share no, one or two pages, some of which repeat themselves; greedy and seeded.
fn crowd(seed: u32) -> Vec<Generation> {
    (0..8_u32)
        .map(|index| {
            let alike = [0, 64, 130, 130][index as usize % 4];
            let mut prompt = ids(seed, alike);
            let own = ids(
                seed + 31 * index,
                1 + (seed as usize + 17 * index as usize) % 60,
            );
            prompt.extend(&own);
            if index % 3 == 0 {
                prompt.extend(&own);
            }
            let sampling = Sampling {
                temperature: if index % 2 == 0 { 0.0 } else { 0.9 },
                top_p: if index % 4 == 1 { 0.9 } else { 1.0 },
                seed: u64::from(seed + index),
                ..Sampling::default()
            };
            Generation {
                prompt,
                max_tokens: 1 + (seed + 13 * index) as usize % 40,
                sampling,
                stop_ids: vec![0],
                ..Generation::default()
            }
        })
        .collect()
}

/// Runs `generations` at once.
fn run(engine: &Engine, generations: Vec<Generation>) -> Vec<Vec<u32>> {
    let runtime = runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let streams = engine.submit(generations).expect("the queue has room");
        let mut answers = Vec::new();
        for mut stream in streams {
            let mut tokens = Vec::new();
            loop {
                match stream.next().await.expect("an end is reported") {
                    TokenEvent::Token(token) => tokens.push(token),
                    TokenEvent::Finished(_) => break,
                    other => panic!("{other:?}"),
                }
            }
            answers.push(tokens);
        }
        answers
    })
}

/// Runs each of them alone, with nothing cached and no drafts.
fn alone(generations: &[Generation]) -> Vec<Vec<u32>> {
    let settings = Settings {
        max_batch: 1,
        prefix_cache: false,
        speculation: 0,
        ..Settings::default()
    };
    let metrics = Arc::new(Metrics::new());
    let engine = Engine::start(Box::new(load(1, 8)), settings, metrics).expect("it starts");
    run(&engine, generations.to_vec())
}

fn settings() -> impl Strategy<Value = Settings> {
    let prompt_rows = prop_oneof![
        (1..40_usize).prop_map(PromptRows::Fixed),
        (1.0..5.0_f64).prop_map(PromptRows::Slowdown),
    ];
    let numbers = (1..9_usize, 0..130_usize, 0..9_usize);
    (numbers, prompt_rows, any::<bool>()).prop_map(
        |((max_batch, more, speculation), prompt_rows, prefix_cache)| Settings {
            max_batch,
            max_queue: 64,
            step_tokens: max_batch + more,
            prompt_rows,
            prefix_cache,
            speculation,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn tokens_do_not_depend_on_company_order_chunks_threads_cache_or_guesses(
        settings in settings(), threads in 1..4_usize, pages in 8..40_usize, seed in 0..1000_u32,
        order in Just((0..8_usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let generations = crowd(seed);
        let expected = alone(&generations);
        let model = Box::new(load(threads, pages));
        let engine = Engine::start(model, settings, Arc::new(Metrics::new())).expect("it starts");
        // The second round, and shared beginnings, may find their pages in the cache.
        for _ in 0..2 {
            let shuffled = order.iter().map(|&index| generations[index].clone()).collect();
            let answers = run(&engine, shuffled);
            for (&index, answer) in order.iter().zip(&answers) {
                prop_assert_eq!(answer, &expected[index]);
            }
        }
    }
}

#[test]
fn what_is_found_and_what_is_guessed_changes_no_token() {
    let metrics = Arc::new(Metrics::new());
    let model = Box::new(load(2, 40));
    let engine =
        Engine::start(model, Settings::default(), Arc::clone(&metrics)).expect("it starts");
    for seed in 0..4 {
        let mut generations = crowd(seed);
        // Long enough that a greedy answer of such a model begins to repeat itself.
        generations[0].max_tokens = 250;
        let expected = alone(&generations);
        for (one, expected) in generations.iter().zip(&expected) {
            assert_eq!(&run(&engine, vec![one.clone()])[0], expected);
        }
        assert_eq!(run(&engine, generations), expected);
    }
    assert!(metrics.prefix_cache_hits_total.get() > 1000);
    assert!(metrics.speculation_drafted_tokens_total.get() > 0);
    assert!(metrics.speculation_accepted_tokens_total.get() > 0);
}

#[test]
fn whoever_pauses_for_want_of_pages_goes_on_with_the_same_tokens() {
    let answers: Vec<Generation> = crowd(5)
        .into_iter()
        .map(|one| Generation {
            prompt: one.prompt[..one.prompt.len().min(70)].to_vec(),
            max_tokens: 440,
            stop_ids: Vec::new(),
            ..one
        })
        .collect();
    let expected = alone(&answers);
    for (threads, prefix_cache) in [(1, false), (3, true)] {
        let metrics = Arc::new(Metrics::new());
        let settings = Settings {
            max_batch: 8,
            prefix_cache,
            // Off, because it depends on step times: all generations grow side by side and use up the pages.
            speculation: 0,
            prompt_rows: PromptRows::Fixed(16),
            ..Settings::default()
        };
        // Each needs 7 or 8 pages in the end; four are admitted, since the initial estimate of an answer is 256 tokens.
        let model = Box::new(load(threads, 20));
        let engine = Engine::start(model, settings, Arc::clone(&metrics)).expect("it starts");
        assert_eq!(run(&engine, answers.clone()), expected);
        assert!(metrics.preemptions_total.get() > 0, "nobody was preempted");
    }
}
