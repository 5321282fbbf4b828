//! R18: hours of mixed traffic leave nothing behind.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::RngExt;
use rand_pcg::Pcg64;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::arguments::Context;
use crate::client::{self, COMPLETIONS, Stream, post_request};
use crate::findings::{Findings, Problem};
use crate::load::{ids, random, stream_body};
use crate::machine;
use crate::models;
use crate::server::Server;

const CLIENTS: u64 = 8;
/// The most that memory may grow for 10,000 requests.
const MOST_MIB: f64 = 1.0;

/// With fewer requests, the first allocations of each size look like growth.
const LEAST: u64 = 2_000;

/// What was seen at one moment.
struct Sample {
    requests: u64,
    memory: u64,
    descriptors: usize,
    threads: usize,
}

impl Sample {
    fn of(id: u32, requests: u64) -> Self {
        Self {
            requests,
            memory: machine::memory(id).anon,
            descriptors: machine::descriptors(id),
            threads: machine::threads(id),
        }
    }
}

/// The growth of memory in MiB for 10,000 requests: the slope of the line that lies nearest to the samples of the second
/// half, when caches are full and every buffer has its size.
fn slope(samples: &[Sample]) -> f64 {
    let half = &samples[samples.len() / 2..];
    let count = half.len().max(1) as f64;
    let x = |sample: &Sample| sample.requests as f64 / 10_000.0;
    let y = |sample: &Sample| sample.memory as f64 / f64::from(1 << 20);
    let mean = |of: &dyn Fn(&Sample) -> f64| half.iter().map(of).sum::<f64>() / count;
    let (mean_x, mean_y) = (mean(&x), mean(&y));
    let covariance = mean(&|sample| (x(sample) - mean_x) * (y(sample) - mean_y));
    let variance = mean(&|sample| (x(sample) - mean_x).powi(2));
    covariance / variance
}

pub async fn soak(context: Context) -> Result<Findings, Problem> {
    let model = models::tiny(2048)?;
    let server = Server::start(&context, &model.path, &["--kv-cache", "32MiB"]).await?;
    let time = context.of(Duration::from_secs(40), Duration::from_secs(3600));
    let most: u64 = context.of(30_000, 200_000);
    let done = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let end = Instant::now() + time;
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (address, done) = (server.address, std::sync::Arc::clone(&done));
        clients.spawn(async move {
            let (mut random, mut failures) = (random(client), 0);
            while Instant::now() < end
                && done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < most
            {
                failures += usize::from(!one(address, &mut random).await);
            }
            failures
        });
    }
    let mut samples = Vec::new();
    let step = time / 80;
    while Instant::now() < end && done.load(std::sync::atomic::Ordering::Relaxed) < most {
        sleep(step).await;
        samples.push(Sample::of(
            server.id,
            done.load(std::sync::atomic::Ordering::Relaxed),
        ));
    }
    let failures: usize = clients.join_all().await.into_iter().sum();
    let total = done.load(std::sync::atomic::Ordering::Relaxed);
    if total < LEAST {
        return Ok(Findings::skipped(format!(
            "no core to spare: {total} requests in {} s tell nothing",
            time.as_secs()
        )));
    }
    let mut found = Findings::default();
    found.shown("requests", total as f64, "");
    found.never("answered otherwise than expected", failures);
    found.at_most(
        "growth per 10,000",
        slope(&samples),
        "MiB",
        allowance(&samples),
    );
    // After the last request, everything that belonged to one is closed.
    server
        .until("idle", |metrics| metrics.get("requests_running") == 0.0)
        .await?;
    sleep(Duration::from_millis(500)).await;
    let last = Sample::of(server.id, total);
    let middle = &samples[samples.len() / 2];
    found.at_most(
        "descriptors more than in the middle",
        last.descriptors as f64 - middle.descriptors as f64,
        "",
        0.0,
    );
    found.at_most(
        "threads more than in the middle",
        last.threads as f64 - middle.threads as f64,
        "",
        0.0,
    );
    found.at_least(
        "a program that leaks is caught: it grew",
        control().await?,
        "MiB",
        2.0 * MOST_MIB,
    );
    Ok(found)
}

/// A short run cannot tell a slope of a megabyte from the steps in which an allocator grows: two of 256 KiB in the second
/// half are within the allowance.
fn allowance(samples: &[Sample]) -> f64 {
    let half = &samples[samples.len() / 2..];
    let requests = half.last().map_or(0, |last| last.requests)
        - half.first().map_or(0, |first| first.requests);
    MOST_MIB.max(0.5 * 10_000.0 / requests.max(1) as f64)
}

/// One request of the mixture: a tenth leaves early, a twentieth is invalid, a twentieth reads slowly. Returns whether it
/// was answered as it should.
async fn one(address: SocketAddr, random: &mut Pcg64) -> bool {
    let kind = random.random_range(0..20);
    let (prompt, tokens) = (random.random_range(1..200), random.random_range(1..60));
    match kind {
        0 | 1 => {
            let bytes = post_request(COMPLETIONS, &stream_body(random, prompt, 1500));
            match Stream::open(address, &bytes).await {
                Ok(mut stream) => stream.status == 429 || stream.piece().await.is_ok(),
                Err(_) => false,
            }
        }
        2 => {
            let body = json!({"prompt": [1_000_000], "max_tokens": 1});
            client::post(address, COMPLETIONS, &body)
                .await
                .is_ok_and(|answer| answer.status == 400)
        }
        3 => {
            let bytes = post_request(COMPLETIONS, &stream_body(random, prompt, 5));
            let Ok(mut stream) = Stream::open(address, &bytes).await else {
                return false;
            };
            loop {
                sleep(Duration::from_millis(20)).await;
                match stream.piece().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return true,
                    Err(_) => return false,
                }
            }
        }
        _ => {
            let body = json!({"prompt": ids(random, prompt), "max_tokens": tokens, "seed": 1});
            client::post(address, COMPLETIONS, &body)
                .await
                .is_ok_and(|answer| answer.status == 200)
        }
    }
}

/// Measures a program that keeps a little of everything, as a check of this check.
async fn control() -> Result<f64, Problem> {
    struct Killed(Child);
    impl Drop for Killed {
        fn drop(&mut self) {
            let _gone_already = self.0.kill();
            let _reaped = self.0.wait();
        }
    }
    let this = std::env::current_exe()?;
    let process = Killed(
        Command::new(this)
            .arg("--leak")
            .stdout(Stdio::null())
            .spawn()?,
    );
    let mut samples = Vec::new();
    for step in 0..20 {
        sleep(Duration::from_millis(100)).await;
        // As many requests as it says it would have answered.
        samples.push(Sample::of(process.0.id(), step * 1000));
    }
    Ok(slope(&samples))
}

/// Keeps a kilobyte for each of ten thousand imagined requests a second, for some seconds.
pub fn leak() -> ! {
    let mut kept = Vec::new();
    for _ in 0..400 {
        for _ in 0..100 {
            kept.push(vec![1_u8; 1024]);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    std::process::exit(i32::from(kept.is_empty()))
}
