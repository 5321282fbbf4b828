//! Whole generations on the real int8 model: concurrent generations change no token.

use std::sync::Arc;

use microgranite::engine::{Engine, Generation, PromptRows, Sampling, Settings, TokenEvent};
use microgranite::model::{self, Forward, Granite, ModelConfig, Rewind};
use microgranite::telemetry::Metrics;
use proptest::prelude::*;
use tokio::runtime;

use super::{MODELS, checkpoint, ids};

/// The fixture `name` with as many slots as a batch of `max_batch` needs.
fn load(name: &str, threads: usize, pages: usize, engine: &Settings) -> Granite {
    let checkpoint = checkpoint(name);
    let config = ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config);
    let page_bytes = model::footprint(&config.expect("a configuration")).kv_page;
    let settings = model::Settings {
        threads,
        slots: engine.slots(),
        // Some, but not one for everybody.
        snapshots: pages / 8,
        kv_bytes: pages as u64 * page_bytes,
        context: Some(512),
        weights: model::Placement::default(),
    };
    let mut model = model::load(&checkpoint, &settings, &mut |_, _| ()).expect("it loads");
    model.poison_states();
    model
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
fn alone(name: &str, generations: &[Generation]) -> Vec<Vec<u32>> {
    let settings = Settings {
        max_batch: 1,
        prefix_cache: false,
        speculation: 0,
        ..Settings::default()
    };
    let metrics = Arc::new(Metrics::new());
    let model = Box::new(load(name, 1, 8, &settings));
    let engine = Engine::start(model, settings, metrics).expect("it starts");
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
            ..Settings::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn tokens_do_not_depend_on_company_order_chunks_threads_cache_or_guesses(
        settings in settings(), threads in 1..4_usize, pages in 8..40_usize, seed in 0..1000_u32,
        order in Just((0..8_usize).collect::<Vec<_>>()).prop_shuffle(), kind in 0..MODELS.len(),
    ) {
        let (name, generations) = (MODELS[kind], crowd(seed));
        let expected = alone(name, &generations);
        let model = Box::new(load(name, threads, pages, &settings));
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
    what_is_found_and_guessed(MODELS[0], 4);
    for name in &MODELS[1..] {
        what_is_found_and_guessed(name, 1);
    }
}

fn what_is_found_and_guessed(name: &str, seeds: u32) {
    let metrics = Arc::new(Metrics::new());
    let model = Box::new(load(name, 2, 40, &Settings::default()));
    let is_free = model.rewind() == Rewind::Free;
    let engine =
        Engine::start(model, Settings::default(), Arc::clone(&metrics)).expect("it starts");
    for seed in 0..seeds {
        let mut generations = crowd(seed);
        // Long enough that a greedy answer of such a model begins to repeat itself.
        generations[0].max_tokens = 250;
        let expected = alone(name, &generations);
        for (one, expected) in generations.iter().zip(&expected) {
            assert_eq!(&run(&engine, vec![one.clone()])[0], expected, "{name}");
        }
        assert_eq!(run(&engine, generations), expected, "{name}");
    }
    // A recurrent model can only go on from where a snapshot was taken.
    let least = if is_free { 250 } else { 0 };
    assert!(metrics.prefix_cache_hits_total.get() > least * u64::from(seeds));
    // Whether a guess pays depends on the times of steps; only the answers of this one are sure to repeat themselves.
    if name != MODELS[0] {
        return;
    }
    assert!(metrics.speculation_drafted_tokens_total.get() > 0);
    assert!(metrics.speculation_accepted_tokens_total.get() > 0);
}

#[test]
fn whoever_pauses_for_want_of_pages_goes_on_with_the_same_tokens() {
    // Attention alone, and everything else together.
    for name in ["granite-3-tiny", "granite-4-hybrid-moe-tiny"] {
        whoever_pauses_goes_on(name);
    }
}

fn whoever_pauses_goes_on(name: &str) {
    let answers: Vec<Generation> = crowd(5)
        .into_iter()
        .map(|one| Generation {
            prompt: one.prompt[..one.prompt.len().min(70)].to_vec(),
            max_tokens: 440,
            stop_ids: Vec::new(),
            ..one
        })
        .collect();
    let expected = alone(name, &answers);
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
        let model = Box::new(load(name, threads, 20, &settings));
        let engine = Engine::start(model, settings, Arc::clone(&metrics)).expect("it starts");
        assert_eq!(run(&engine, answers.clone()), expected, "{name}");
        assert!(
            metrics.preemptions_total.get() > 0,
            "{name}: nobody was preempted"
        );
    }
}
