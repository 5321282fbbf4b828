//! An engine without work uses no processor time.

use std::sync::Arc;
use std::time::Duration;

use microgranite::engine::{Engine, Generation, Settings};
use microgranite::telemetry::Metrics;

use crate::steps::{alone, tiny};

/// Total run time in nanoseconds of this process's threads called `engine` or `compute-…`, and how many there are.
fn run_time() -> (u64, usize) {
    let mut total = (0, 0);
    for thread in std::fs::read_dir("/proc/self/task").expect("Linux") {
        let thread = thread.expect("an entry").path();
        // A thread may end in between.
        let read = |file| std::fs::read_to_string(thread.join(file)).unwrap_or_default();
        let name = read("comm");
        if name.starts_with("engine") || name.starts_with("compute-") {
            let times = read("schedstat");
            let running = times
                .split_whitespace()
                .next()
                .and_then(|time| time.parse().ok());
            total.0 += running.unwrap_or(0_u64);
            total.1 += 1;
        }
    }
    total
}

#[test]
fn an_engine_without_work_takes_no_processor_time() {
    let _alone = alone();
    let metrics = Arc::new(Metrics::new());
    let engine = Engine::start(Box::new(tiny(2)), Settings::default(), metrics);
    let engine = engine.expect("it starts");
    let generation = Generation {
        prompt: vec![1; 200],
        max_tokens: 100,
        ..Generation::default()
    };
    let started = run_time().0;
    let mut stream = engine.submit(vec![generation]).expect("room").remove(0);
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime
        .expect("a runtime")
        .block_on(async { while stream.next().await.is_some() {} });
    // The pool spins for a moment before it parks.
    std::thread::sleep(Duration::from_millis(50));
    let (worked, threads) = run_time();
    assert_eq!(threads, 2, "the engine's own and one compute thread");
    assert!(worked > started, "the clock of threads works");
    std::thread::sleep(Duration::from_secs(1));
    let idle = Duration::from_nanos(run_time().0 - worked);
    assert!(
        idle < Duration::from_millis(2),
        "{idle:?} in a second without work"
    );
}
