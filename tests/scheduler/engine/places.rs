//! Tests of places in the batch and in the queue.

use microgranite::engine::{Refusal, Settings};

use crate::checked_model::PAGE_BYTES;
use crate::harness::{
    LENGTH, collect, eventually, generation, kv_bytes, small, start, start_gated, submit,
};

#[test]
fn leaving_frees_place_and_pages_within_a_step() {
    let settings = Settings {
        max_batch: 2,
        ..small()
    };
    let (engine, metrics, stepper) = start_gated(settings, 20);
    let decoding = submit(&engine, generation(1, 10, 100));
    assert_eq!(stepper.began(), [(0, 10)]);
    let in_prompt = submit(&engine, generation(2, 60, 100));
    let waiting = submit(&engine, generation(3, 7, 2));
    let last = submit(&engine, generation(4, 8, 2));
    stepper.go();
    assert_eq!(stepper.began(), [(10, 1), (0, 16)]);
    assert_eq!(metrics.requests_running.get(), 2);
    assert_eq!(metrics.requests_waiting.get(), 2);
    assert_eq!(kv_bytes(&metrics, "used"), 2 * PAGE_BYTES as i64);

    drop(in_prompt); // between two chunks
    drop(waiting);
    stepper.go();
    assert_eq!(stepper.began(), [(11, 1), (0, 8)], "the last one starts");
    assert_eq!(metrics.requests_running.get(), 2);
    assert_eq!(metrics.requests_waiting.get(), 0);

    drop(decoding);
    stepper.go();
    assert_eq!(stepper.began(), [(8, 1)]);
    assert_eq!(metrics.requests_running.get(), 1);
    assert_eq!(kv_bytes(&metrics, "used"), PAGE_BYTES as i64);

    drop(last); // all are cancelled
    stepper.go();
    eventually(|| metrics.requests_running.get() == 0);
    assert_eq!(kv_bytes(&metrics, "used"), 0);
    assert!(stepper.is_idle(), "there is nothing to run");
}

#[test]
fn a_full_queue_refuses_all_or_none() {
    let (engine, metrics, stepper) = start_gated(small(), 20);
    let many = |count: u32| (0..count).map(|seed| generation(seed, 5, 5)).collect();
    // Four batch slots and a queue of four: eight fit at once, nine do not.
    assert!(matches!(
        engine.submit(many(9)),
        Err(Refusal::QueueFull { .. })
    ));
    let mut streams = engine.submit(many(6)).unwrap();
    stepper.began();
    assert_eq!(metrics.requests_waiting.get(), 2);
    let refusal = engine.submit(many(3)).unwrap_err();
    let Refusal::QueueFull { retry_after, .. } = refusal else {
        panic!("{refusal:?}");
    };
    assert!((1..=60).contains(&retry_after.as_secs()));
    assert_eq!(metrics.requests_waiting.get(), 2, "none of the three waits");
    streams.extend(engine.submit(many(2)).unwrap());
    assert_eq!(metrics.requests_waiting.get(), 4);
    assert!(engine.submit(many(1)).is_err());
    assert_eq!(engine.submit(Vec::new()).unwrap().len(), 0);

    // A place in the queue becomes free as soon as a waiting generation is cancelled.
    streams.pop();
    stepper.go();
    stepper.began();
    assert_eq!(metrics.requests_waiting.get(), 3);
    engine.submit(many(1)).unwrap();
}

#[test]
fn places_that_want_for_pages_are_not_free() {
    let settings = Settings {
        max_queue: 2,
        ..small()
    };
    let (engine, metrics, stepper) = start_gated(settings, 4);
    let _running = submit(&engine, generation(1, 200, 50));
    stepper.began();
    let _first = submit(&engine, generation(2, 5, 5));
    stepper.go();
    stepper.began();
    // Three batch slots are free, but there is no page for the waiting generation.
    assert_eq!(metrics.requests_waiting.get(), 1);
    let two = vec![generation(3, 5, 5), generation(4, 5, 5)];
    assert!(engine.submit(two).is_err());
    let _second = submit(&engine, generation(3, 5, 5));
    assert_eq!(metrics.requests_waiting.get(), 2);
}

#[tokio::test]
async fn without_a_queue_the_places_in_the_batch_are_for_whoever_comes() {
    let settings = Settings {
        max_queue: 0,
        ..small()
    };
    let (engine, _) = start(settings, 20);
    for _ in 0..50 {
        let four = (0..4).map(|seed| generation(seed, 5, 3)).collect();
        // The slot is free by the time the end is reported.
        for stream in engine.submit(four).unwrap() {
            assert_eq!(collect(stream).await.1, LENGTH);
        }
    }
}
