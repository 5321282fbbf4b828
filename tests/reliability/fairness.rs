//! R38: a client that floods the server does not hold up the others.

use std::io::Write as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::arguments::Context;
use crate::client::{COMPLETIONS, request};
use crate::findings::{Findings, Problem};
use crate::load::{self, Fate, first_tokens, quantile, random, stream_body};
use crate::models;
use crate::server::Server;

/// A request with an API key.
fn with_key(key: &str, body: &Value) -> Vec<u8> {
    let header = format!("x-api-key: {key}\r\n");
    request("POST", COMPLETIONS, &header, body.to_string().as_bytes())
}

pub async fn fairness(context: Context) -> Result<Findings, Problem> {
    let help = Command::new(&context.server)
        .args(["serve", "--help"])
        .output()?;
    if !String::from_utf8_lossy(&help.stdout).contains("--target-ttft") {
        return Ok(Findings::skipped(
            "this build answers in the order of arrival",
        ));
    }
    let mut keys = tempfile::NamedTempFile::new()?;
    writeln!(keys, "first\nsecond")?;
    let path = keys.path().display().to_string();
    let model = models::tiny(8192)?;
    let flags = ["--api-key-file", &*path, "--max-queue", "256"];
    let server = Server::start(&context, &model.path, &flags).await?;
    let address = server.address;
    let count = context.of(20, 100);
    let honest = async |seed: u64| -> Vec<Fate> {
        let (mut random, mut fates) = (random(seed), Vec::new());
        for _ in 0..count {
            let body = stream_body(&mut random, 32, 16);
            fates.push(load::ask(address, with_key("first", &body)).await);
        }
        fates
    };
    let alone = honest(1).await;
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
    let waiting = server.metrics().await?.get("requests_waiting");
    let beside = honest(2).await;
    is_over.store(true, Relaxed);
    flood.abort_all();
    while flood.join_next().await.is_some() {}
    let mut found = Findings::default();
    let [alone, median] = [&alone, &beside].map(|fates| quantile(first_tokens(fates), 0.5));
    let ratio = median.as_secs_f64() / alone.as_secs_f64();
    found.timed_at_most("median first token beside a flood", ratio, "× alone", 1.3);
    found.always("answered", first_tokens(&beside).len(), count);
    found.shown("of the flood wait", waiting, "");
    Ok(found)
}
