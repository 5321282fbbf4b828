//! R38: a client that floods the server does not hold up the others.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::arguments::Context;
use crate::client::{self, COMPLETIONS, request};
use crate::findings::{Findings, Problem};
use crate::load::{self, ids, quantile, random, stream_body};
use crate::models;
use crate::server::Server;

/// The metric that counts steps.
const STEPS: &str = "batch_rows_count";

/// A request with an API key.
fn with_key(key: &str, body: &Value) -> Vec<u8> {
    let header = format!("x-api-key: {key}\r\n");
    request("POST", COMPLETIONS, &header, body.to_string().as_bytes())
}

/// Requests for one token, one after the other: how long each took, and how long in the engine.
#[derive(Default)]
struct Honest {
    whole: Vec<Duration>,
    in_engine: Vec<Duration>,
}

impl Honest {
    async fn ask(address: SocketAddr, count: usize, seed: u64) -> Result<Self, Problem> {
        let (mut random, mut all) = (random(seed), Self::default());
        for _ in 0..count {
            let body =
                json!({"prompt": ids(&mut random, PROMPT), "max_tokens": 1, "ignore_eos": true});
            let began = Instant::now();
            let answer = client::exchange(address, &with_key("first", &body)).await?;
            all.whole.push(began.elapsed());
            let receipt = &answer.json()["receipt"];
            let seconds = |name: &str| receipt[name].as_f64().unwrap_or(f64::INFINITY);
            let engine = seconds("queue_seconds") + seconds("prefill_seconds");
            let engine = Duration::try_from_secs_f64(engine);
            all.in_engine.push(engine.map_err(|_| answer.text())?);
        }
        Ok(all)
    }
}

/// Tokens of an honest prompt: as many as two clients' share of a step, so that it takes one or two steps.
const PROMPT: usize = 32;
/// The step that runs when a request comes, and two with its prompt.
const MOST_STEPS: f64 = 3.0;

pub async fn fairness(context: Context) -> Result<Findings, Problem> {
    let mut keys = tempfile::NamedTempFile::new()?;
    writeln!(keys, "first\nsecond")?;
    let path = keys.path().display().to_string();
    let model = models::tiny(8192)?;
    let flags = ["--api-key-file", &*path, "--max-queue", "256", "--receipts"];
    let server = Server::start(&context, &model.path, &flags).await?;
    let address = server.address;
    let count = context.of(40, 200);
    let alone = Honest::ask(address, count, 1).await?;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut flood = JoinSet::new();
    for client in 0..64 {
        let is_over = Arc::clone(&is_over);
        flood.spawn(async move {
            let mut random = random(100 + client);
            while !is_over.load(Relaxed) {
                let body = stream_body(&mut random, 64, 64);
                load::ask(address, with_key("second", &body)).await;
            }
        });
    }
    sleep(Duration::from_secs(1)).await;
    let before = server.metrics().await?;
    let began = Instant::now();
    let beside = Honest::ask(address, count, 2).await?;
    let elapsed = began.elapsed();
    let steps = server.metrics().await?.get(STEPS) - before.get(STEPS);
    is_over.store(true, Relaxed);
    flood.abort_all();
    while flood.join_next().await.is_some() {}
    let mut found = Findings::default();
    // Not in seconds: the clients of the flood take as much of the cores as the server, and everything takes longer for it.
    let step = elapsed.as_secs_f64() / steps;
    let waited = quantile(beside.in_engine, 0.5).as_secs_f64() / step;
    found.timed_at_most(
        "median first token beside a flood",
        waited,
        "steps",
        MOST_STEPS,
    );
    let [alone, whole] = [alone.whole, beside.whole].map(|times| quantile(times, 0.5));
    let ratio = whole.as_secs_f64() / alone.as_secs_f64();
    found.shown("for its client", ratio, "× alone");
    found.shown("a step", step * 1e3, "ms");
    found.at_least(
        "of the flood wait",
        before.get("requests_waiting"),
        "",
        16.0,
    );
    Ok(found)
}
