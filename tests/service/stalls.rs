//! Tests of a step that does not end: waiting requests fail, new ones are refused, and the service recovers if the step
//! ends after all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fake::{Fake, Next};
use crate::harness::Service;

/// Much longer than the two seconds after which such small steps count as stalled.
const LIMIT: Duration = Duration::from_secs(20);

/// A switch that makes the engine's thread hang while it is on.
#[derive(Clone, Default)]
struct Frozen(Arc<AtomicBool>);

impl Frozen {
    fn set(&self, frozen: bool) {
        self.0.store(frozen, Relaxed);
    }

    /// A service whose steps do not end while the switch is on.
    fn service(&self) -> Service {
        let frozen = Arc::clone(&self.0);
        Service::start(Fake::new(move |before| {
            while frozen.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
            Next::Token(1 + before.len() as u32 % 200)
        }))
    }
}

impl Drop for Frozen {
    /// Turns the switch off, so that the engine's thread can end with the test.
    fn drop(&mut self) {
        self.set(false);
    }
}

/// Waits until `/readyz` answers `status`.
async fn readiness_is(service: &Service, status: u16) {
    let start = Instant::now();
    while service.get("/readyz").await.status() != status {
        assert!(start.elapsed() < LIMIT, "readiness is not {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_step_that_does_not_end_fails_what_runs_and_refuses_what_comes() {
    let frozen = Frozen::default();
    let service = frozen.service();
    let short = json!({"prompt": [3, 4], "max_tokens": 4});
    service.complete(short.clone()).await;
    frozen.set(true);

    let whole = service.completion(&short).send();
    let streamed = json!({"prompt": [3, 4], "max_tokens": 4, "stream": true});
    let streamed = service.completion(&streamed).send();
    let (whole, streamed, ()) = tokio::join!(whole, streamed, readiness_is(&service, 503));
    for response in [whole.unwrap(), streamed.unwrap()] {
        assert_eq!(response.status(), 503);
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["error"]["code"], "engine_stalled");
    }
    let start = Instant::now();
    let refused = service.completion(&short).send().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    assert!(start.elapsed() < Duration::from_secs(2), "at once");
    assert_eq!(service.get("/livez").await.status(), 200, "it may end yet");
    assert_eq!(service.metrics.engine_stalls_total.get(), 1);

    frozen.set(false);
    readiness_is(&service, 200).await;
    service.complete(short).await;
    service.idle_within_a_second().await;
}

#[tokio::test]
async fn a_stream_that_has_begun_ends_with_an_error() {
    let frozen = Frozen::default();
    let hold = Arc::clone(&frozen.0);
    let service = Service::start(Fake::new(move |before| {
        // The model generates a few tokens and then hangs.
        while hold.load(Relaxed) && before.len() > 10 {
            std::thread::sleep(Duration::from_millis(5));
        }
        Next::Token(1 + before.len() as u32 % 200)
    }));
    frozen.set(true);
    let body = json!({"prompt": [3, 4], "max_tokens": 100, "stream": true});
    let response = service.completion(&body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let text = response.text().await.unwrap();
    let events: Vec<&str> = text.split_terminator("\n\n").collect();
    let [.., error, done] = &*events else {
        panic!("{text}");
    };
    assert!(error.contains("engine_stalled"), "{text}");
    assert_eq!(*done, "data: [DONE]", "{text}");
}

#[tokio::test]
async fn slow_steps_are_no_stalls_once_they_are_known() {
    let service = Service::start(Fake::babbling().with_step_time(Duration::from_millis(700)));
    // The prompts become longer, so later steps have more rows than any before; all take less than the limit.
    for prompt in [vec![3], vec![3; 40], vec![3; 100]] {
        service
            .complete(json!({"prompt": prompt, "max_tokens": 2}))
            .await;
    }
    assert_eq!(service.metrics.engine_stalls_total.get(), 0);
}

#[tokio::test]
async fn a_step_that_was_given_up_does_not_make_the_next_one_a_stall() {
    // More than the two seconds that a step may take after much shorter ones.
    let service = Service::start(Fake::babbling().with_step_time(Duration::from_secs(3)));
    let long = json!({"prompt": vec![3; 100], "max_tokens": 1});
    let impatient = service
        .completion(&long)
        .timeout(Duration::from_millis(300));
    assert!(impatient.send().await.is_err());
    service.complete(long).await;
    assert_eq!(service.metrics.engine_stalls_total.get(), 0);
}
