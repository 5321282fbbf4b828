//! Generations in the background: they leave no trace, and wait for nobody.

use microgranite::engine::{Settings, TokenEvent};

use crate::harness::{events, eventually, generation, small, start_gated, within};

#[tokio::test]
async fn what_ran_in_the_background_says_nothing_about_answers() {
    let settings = Settings {
        max_batch: 16,
        step_tokens: 128,
        ..small()
    };
    let (engine, metrics, stepper) = start_gated(settings, 32);
    let length = 8;
    for seed in 0..40 {
        let stream = engine.submit_in_background(generation(seed, 8, length));
        for _ in 0..length {
            stepper.began();
            assert_eq!(metrics.requests_running.get(), 0);
            stepper.go();
        }
        let events = events(stream.expect("nothing else runs")).await;
        assert_eq!(events.len(), length + 1, "{events:?}");
    }
    // As many as fit if nothing is known of the length of answers; if they were as short as those, all sixteen would.
    let chat = |seed: u32| generation(seed, 8, 900);
    let streams = engine.submit((0..16).map(chat).collect()).unwrap();
    stepper.began();
    assert_eq!(metrics.requests_running.get(), 6);
    drop((streams, stepper));
    eventually(|| metrics.requests_running.get() == 0 && metrics.requests_waiting.get() == 0);
    assert_eq!(metrics.queue_wait_seconds.get_sample_count(), 6);
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_what_runs_in_the_background() {
    let (engine, metrics, stepper) = start_gated(small(), 20);
    let stream = engine.submit_in_background(generation(1, 8, 900)).unwrap();
    stepper.began();
    stepper.go();
    stepper.began();
    engine.drain();
    assert!(engine.submit_in_background(generation(2, 8, 9)).is_none());
    // The step that runs ends, and no other begins.
    stepper.go();
    within(engine.stopped()).await;
    let last = events(stream).await.pop();
    assert_eq!(last, Some(TokenEvent::Displaced));
    assert_eq!(metrics.batch_rows.get_sample_count(), 0);
}
