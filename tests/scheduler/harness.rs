//! Helpers for tests of whole generations.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use microgranite::engine::{
    Engine, FinishReason, Generation, PromptRows, Settings, TokenEvent, TokenStream,
};
use microgranite::telemetry::Metrics;

use crate::checked_model::{CheckedModel, NAN_TOKEN, Stepper};

pub const LENGTH: TokenEvent = TokenEvent::Finished(FinishReason::Length);

pub fn small() -> Settings {
    Settings {
        max_batch: 4,
        max_queue: 4,
        max_queue_tokens: 100_000,
        target_ttft: None,
        step_tokens: 64,
        prompt_rows: PromptRows::Fixed(16),
        prefix_cache: false,
        speculation: 0,
        // Whoever reads late is not paused; tests/scheduler/pausing.rs has its own bound.
        max_unread_bytes: usize::MAX,
    }
}

/// A greedy generation with a prompt that depends on `seed`.
pub fn generation(seed: u32, prompt_len: usize, max_tokens: usize) -> Generation {
    Generation {
        prompt: (0..prompt_len as u32)
            .map(|i| (seed.wrapping_mul(7919) + i * (seed + 3)) % NAN_TOKEN)
            .collect(),
        max_tokens,
        ..Generation::default()
    }
}

pub fn start(settings: Settings, pages: usize) -> (Engine, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let model = Box::new(CheckedModel::new(&settings, pages));
    let engine = Engine::start(model, settings, Arc::clone(&metrics)).unwrap();
    (engine, metrics)
}

/// As [`start`], with a model that cannot go back.
pub fn start_recurrent(settings: Settings, pages: usize) -> (Engine, Arc<Metrics>) {
    start_with_snapshots(settings, pages, 0)
}

/// As [`start`], with a model that can go back to three snapshots.
pub fn start_recurrent_with_snapshots(settings: Settings, pages: usize) -> (Engine, Arc<Metrics>) {
    start_with_snapshots(settings, pages, 3)
}

pub fn start_with_snapshots(
    settings: Settings,
    pages: usize,
    snapshots: usize,
) -> (Engine, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let model = Box::new(CheckedModel::recurrent(&settings, pages, snapshots));
    let engine = Engine::start(model, settings, Arc::clone(&metrics)).unwrap();
    (engine, metrics)
}

pub fn start_gated(settings: Settings, pages: usize) -> (Engine, Arc<Metrics>, Stepper) {
    let metrics = Arc::new(Metrics::new());
    let (model, stepper) = CheckedModel::gated(&settings, pages);
    let engine = Engine::start(Box::new(model), settings, Arc::clone(&metrics)).unwrap();
    (engine, metrics, stepper)
}

pub fn submit(engine: &Engine, generation: Generation) -> TokenStream {
    engine.submit(vec![generation]).unwrap().remove(0)
}

/// Reads a stream to its end: its tokens and its last event.
pub async fn collect(mut stream: TokenStream) -> (Vec<u32>, TokenEvent) {
    let mut tokens = Vec::new();
    loop {
        match within(stream.next()).await.expect("an end is reported") {
            TokenEvent::Token(token) => tokens.push(token),
            end => {
                assert_eq!(stream.next().await, None, "nothing follows the end");
                return (tokens, end);
            }
        }
    }
}

/// All events of a stream, in order.
pub async fn events(mut stream: TokenStream) -> Vec<TokenEvent> {
    let mut events = Vec::new();
    while let Some(event) = within(stream.next()).await {
        events.push(event);
    }
    events
}

/// Fails a test that hangs, at the line that hangs.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, future)
        .await
        .expect("the engine answers in time")
}

/// Waits for a condition that the engine fulfils only after it has reported the end of a generation.
pub fn eventually(condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "it never happens"
        );
        std::thread::yield_now();
    }
}

pub fn kv_bytes(metrics: &Metrics, state: &str) -> i64 {
    metrics.kv_cache_bytes.with_label_values(&[state]).get()
}
