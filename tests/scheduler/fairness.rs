//! Tests of fairness: whoever floods the engine makes itself wait, and others hardly.

use microgranite::engine::{Flow, Generation, PromptRows, Refusal, Settings, TokenStream};

use crate::checked_model::greedy;
use crate::harness::{LENGTH, collect, generation, small, start_gated, submit};

const fn flow(id: u64) -> Flow {
    Flow { id, weight: 1.0 }
}

fn of(id: u64, generation: Generation) -> Generation {
    Generation {
        flow: flow(id),
        ..generation
    }
}

fn settings() -> Settings {
    Settings {
        max_batch: 4,
        max_queue: 40,
        step_tokens: 64,
        prompt_rows: PromptRows::Fixed(16),
        prefix_cache: true,
        ..small()
    }
}

/// Starts an engine in whose batch and queue there is as much of one client as fits. Returns its streams.
fn flooded(engine: &microgranite::engine::Engine, prompt_len: usize) -> Vec<TokenStream> {
    let mut streams = Vec::new();
    for seed in 0..100 {
        let one = of(1, generation(seed, prompt_len, 60));
        match engine.submit(vec![one]) {
            Ok(more) => streams.extend(more),
            Err(Refusal::QueueFull { .. }) => break,
            Err(other) => panic!("{other}"),
        }
    }
    streams
}

#[test]
fn a_flood_of_one_client_makes_another_wait_for_one_step() {
    // Short prompts that decode already, and long ones that take all rows.
    for (prompt_len, pages) in [(5, 100), (500, 100), (500, 40)] {
        let (engine, _, stepper) = start_gated(settings(), pages);
        let streams = flooded(&engine, prompt_len);
        assert!(streams.len() >= 16, "{}", streams.len());
        for _ in 0..10 {
            stepper.began();
            stepper.go();
        }
        // It arrives in the middle of a step, and is in the next one.
        stepper.began();
        let prompt = generation(1000, 30, 8);
        let stream = submit(&engine, of(2, prompt.clone()));
        stepper.go();
        stepper.began();
        let receipt = stream.receipt().so_far();
        assert!(
            receipt.began.is_some(),
            "{prompt_len}: its rows are in this step"
        );
        drop(stepper);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let answer = runtime.block_on(collect(stream));
        assert_eq!(answer, (greedy(&prompt.prompt, 8), LENGTH));
        // Whoever gave way gets the same tokens as if nothing had happened.
        for (seed, stream) in (0..).zip(streams) {
            let expected = greedy(&generation(seed, prompt_len, 60).prompt, 60);
            assert_eq!(runtime.block_on(collect(stream)), (expected, LENGTH));
        }
    }
}

#[test]
fn one_client_cannot_fill_the_queue_of_others() {
    let (engine, _, stepper) = start_gated(settings(), 100);
    let streams = flooded(&engine, 5);
    // Four slots, and half of the queue.
    assert_eq!(streams.len(), 4 + 20);
    for id in 2..8 {
        engine
            .submit(vec![of(id, generation(9, 5, 5))])
            .expect("there is room for others");
    }
    // Who names nobody may use all of it.
    let (shared, _, other_stepper) = start_gated(settings(), 100);
    // Their streams are kept: a place of somebody who has left is free again.
    let all = (0..100).filter_map(|seed| shared.submit(vec![generation(seed, 5, 5)]).ok());
    assert_eq!(all.collect::<Vec<_>>().len(), 4 + 40);
    drop((stepper, other_stepper));
}

#[test]
fn the_queue_is_bounded_in_tokens_and_a_target_refuses_what_would_come_too_late() {
    let bounded = Settings {
        max_queue_tokens: 1000,
        ..settings()
    };
    let (engine, metrics, stepper) = start_gated(bounded, 100);
    let four = (0..4).map(|seed| generation(seed, 300, 5)).collect();
    let _running = engine.submit(four).unwrap();
    stepper.began();
    let _waiting: Vec<_> = (0..3)
        .map(|seed| submit(&engine, generation(seed, 300, 5)))
        .collect();
    assert_eq!(metrics.prompt_tokens_waiting.get(), 900);
    let refused = engine.submit(vec![generation(9, 101, 5)]);
    assert!(
        matches!(refused, Err(Refusal::QueueFull { .. })),
        "{refused:?}"
    );
    submit(&engine, generation(9, 100, 5));
    drop(stepper);

    let hurried = Settings {
        target_ttft: Some(std::time::Duration::from_millis(100)),
        ..settings()
    };
    let (engine, _, stepper) = start_gated(hurried, 100);
    let long = |seed| generation(seed, 900, 5);
    let _first = submit(&engine, long(1));
    // Nothing is measured yet, so nothing is promised.
    let _second = submit(&engine, long(2));
    for _ in 0..3 {
        stepper.began();
        std::thread::sleep(std::time::Duration::from_millis(30));
        stepper.go();
    }
    stepper.began();
    // Steps of 64 rows take at least 30 ms, so a thousand tokens take at least half a second.
    let refused = engine.submit(vec![long(3)]);
    assert!(matches!(refused, Err(Refusal::Late { .. })), "{refused:?}");
    drop(stepper);
}

#[test]
fn a_step_that_nobody_waits_for_is_given_up_and_changes_nothing_for_others() {
    let caching = Settings {
        prefix_cache: true,
        ..settings()
    };
    let (engine, metrics, stepper) = start_gated(caching, 100);
    let prompt = generation(1, 300, 20);
    let leaving = [
        submit(&engine, prompt.clone()),
        submit(&engine, generation(2, 300, 5)),
    ];
    for _ in 0..3 {
        stepper.began();
        stepper.go();
    }
    stepper.began();
    drop(leaving);
    let computed = metrics.batch_rows.get_sample_count();
    stepper.go();
    let idle = || metrics.requests_running.get() == 0;
    crate::harness::eventually(idle);
    assert_eq!(metrics.batch_rows.get_sample_count(), computed);
    assert_eq!(crate::harness::kv_bytes(&metrics, "used"), 0);

    // One that stays keeps the step, and gets its tokens; the next one of the same text begins with what was computed.
    let staying = submit(&engine, prompt.clone());
    let leaving = submit(&engine, generation(3, 300, 5));
    stepper.began();
    drop(leaving);
    stepper.go();
    drop(stepper);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let answer = runtime.block_on(collect(staying));
    assert_eq!(answer, (greedy(&prompt.prompt, 20), LENGTH));
}
