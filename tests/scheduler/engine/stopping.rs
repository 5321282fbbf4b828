//! Tests of engines that drain, lose their last handle or fail.

use std::sync::Arc;

use microgranite::engine::{Health, Refusal, Settings, TokenEvent};

use crate::checked_model::{NAN_TOKEN, PANIC_TOKEN, greedy};
use crate::harness::{
    LENGTH, collect, eventually, generation, kv_bytes, small, start, start_gated, submit, within,
};

#[tokio::test]
async fn draining_finishes_what_runs_and_what_waits() {
    let settings = Settings {
        max_batch: 1,
        ..small()
    };
    let (engine, _, stepper) = start_gated(settings, 20);
    let streams = engine
        .submit(vec![generation(1, 5, 5), generation(2, 5, 5)])
        .unwrap();
    stepper.began();
    assert_eq!(engine.health(), Health::Running);
    engine.drain();
    assert_eq!(engine.health(), Health::Draining);
    let refused = engine.submit(vec![generation(3, 5, 5)]);
    assert_eq!(refused.err(), Some(Refusal::Draining));
    drop(stepper);
    for stream in streams {
        assert_eq!(collect(stream).await.1, LENGTH);
    }
    within(engine.stopped()).await;
    assert_eq!(engine.health(), Health::Stopped);
    let refused = engine.submit(vec![generation(3, 5, 5)]);
    assert_eq!(refused.err(), Some(Refusal::Stopped));
}

#[tokio::test]
async fn an_idle_engine_drains_at_once() {
    let (engine, _) = start(small(), 20);
    engine.drain();
    within(engine.stopped()).await;
    assert_eq!(engine.health(), Health::Stopped);
}

#[tokio::test]
async fn dropping_the_last_handle_lets_the_rest_finish() {
    let (engine, metrics, stepper) = start_gated(small(), 20);
    let stream = submit(&engine.clone(), generation(1, 5, 5));
    drop(engine);
    drop(stepper);
    assert_eq!(collect(stream).await.1, LENGTH);
    // Besides this test, the engine's thread is the last holder of the metrics.
    eventually(|| Arc::strong_count(&metrics) == 1);
}

#[tokio::test]
async fn a_panic_in_the_model_fails_everything_and_is_seen() {
    let settings = Settings {
        max_batch: 2,
        ..small()
    };
    let (engine, metrics, stepper) = start_gated(settings, 20);
    let mut fatal = generation(2, 5, 5);
    fatal.prompt[4] = PANIC_TOKEN;
    let mut streams = engine
        .submit(vec![generation(1, 5, 5), fatal, generation(3, 5, 5)])
        .unwrap();
    stepper.began();
    streams.push(submit(&engine, generation(4, 5, 5))); // not yet taken by the engine
    stepper.go();
    for stream in streams {
        assert_eq!(collect(stream).await.1, TokenEvent::Failed);
    }
    within(engine.stopped()).await;
    assert_eq!(engine.health(), Health::Failed);
    assert_eq!(engine.step_age(), None);
    engine.drain();
    assert_eq!(engine.health(), Health::Failed, "draining hides nothing");
    let refused = engine.submit(vec![generation(3, 5, 5)]);
    assert_eq!(refused.err(), Some(Refusal::Stopped));
    assert_eq!(metrics.requests_running.get(), 0);
    assert_eq!(metrics.requests_waiting.get(), 0);
}

#[tokio::test]
async fn logits_that_are_not_finite_fail_one_generation_only() {
    let (engine, metrics) = start(small(), 20);
    let mut bad = generation(2, 70, 5);
    bad.prompt[69] = NAN_TOKEN;
    let good = generation(1, 70, 40);
    let expected = greedy(&good.prompt, 40);
    let mut streams = engine.submit(vec![good, bad]).unwrap().into_iter();
    assert_eq!(collect(streams.next().unwrap()).await, (expected, LENGTH));
    assert_eq!(
        collect(streams.next().unwrap()).await,
        (Vec::new(), TokenEvent::Failed)
    );
    assert_eq!(engine.health(), Health::Running);
    assert_eq!(kv_bytes(&metrics, "used"), 0);
    assert_eq!(
        collect(submit(&engine, generation(3, 5, 5))).await.1,
        LENGTH
    );
}
