//! R2: bytes that are hardly HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rand::{Rng, RngExt};
use rand_pcg::Pcg64;
use tokio::task::JoinSet;

use crate::arguments::Context;
use crate::client;
use crate::findings::{Findings, Problem};
use crate::load::{quantile, random};
use crate::machine;
use crate::models;
use crate::overload::ask_blocking;
use crate::server::Server;

/// Connections at once.
const CLIENTS: u64 = 8;

pub async fn raw_http(context: Context) -> Result<Findings, Problem> {
    let model = models::tiny(512)?;
    let mut server = Server::start(&context, &model.path, &[]).await?;
    let total: u64 = context.of(4_000, 200_000);
    // What every server takes at its first connections is not growth.
    attack(&server, 200).await?;
    let before = machine::memory(server.id).anon;
    let is_over = Arc::new(AtomicBool::new(false));
    let (over, admin) = (Arc::clone(&is_over), server.admin);
    let probe = std::thread::spawn(move || {
        let (mut times, mut failures) = (Vec::new(), 0);
        while !over.load(Relaxed) {
            let began = Instant::now();
            failures += usize::from(ask_blocking(admin, "/livez").is_err());
            times.push(began.elapsed());
            std::thread::sleep(Duration::from_millis(10));
        }
        (times, failures)
    });
    let answered = attack(&server, total / CLIENTS).await?;
    is_over.store(true, Relaxed);
    let (times, failures) = probe.join().expect("it does not panic");
    let grown = machine::memory(server.id).anon.saturating_sub(before) as f64 / f64::from(1 << 20);
    let mut found = Findings::default();
    found.at_least("requests", total as f64, "", total as f64);
    found.shown("answered", answered as f64, "");
    found.always("alive", usize::from(server.is_alive()), 1);
    found.at_most("memory", grown, "MiB", 16.0);
    found.never("probes that failed", failures);
    found.within(
        "probe p99",
        quantile(times, 0.99),
        Duration::from_millis(50),
    );
    Ok(found)
}

/// Sends `each` requests from every client; returns how many got any answer.
async fn attack(server: &Server, each: u64) -> Result<usize, Problem> {
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let address = server.address;
        clients.spawn(async move {
            let (mut random, mut answered) = (random(each + client), 0);
            for _ in 0..each {
                let bytes = request(&mut random);
                // What is incomplete would only wait for the deadline of heads and bodies.
                let answer = client::raw(address, &bytes, Duration::from_millis(20)).await;
                answered += usize::from(answer.is_ok_and(|answer| !answer.is_empty()));
            }
            answered
        });
    }
    Ok(clients.join_all().await.into_iter().sum())
}

/// A request by a loose grammar, mostly with some bytes changed.
fn request(random: &mut Pcg64) -> Vec<u8> {
    let mut pick = |from: &[&str]| from[random.random_range(0..from.len())].to_owned();
    let method = pick(&[
        "GET", "POST", "PUT", "OPTIONS", "HEAD", "get", "G E T", "", "\0", "CONNECT", "TRACE",
        "PRI",
    ]);
    let path = pick(&[
        "/",
        "/v1/completions",
        "/livez",
        "*",
        "//",
        "/../..",
        "/%00",
        "http://x/livez",
        "/?a=%ff",
        "\r\n",
        "/v1/models/%2e%2e",
    ]);
    let version = pick(&[
        "HTTP/1.1",
        "HTTP/1.0",
        "HTTP/2.0",
        "HTTP/9.9",
        "",
        "http/1.1",
        "HTTP/1.1\0",
    ]);
    let end = pick(&["\r\n", "\r\n", "\r\n", "\n", "\r", "\r\n\r\n"]);
    let mut text = format!("{method} {path} {version}{end}");
    for _ in 0..random.random_range(0..6) {
        let mut pick = |from: &[&str]| from[random.random_range(0..from.len())].to_owned();
        let name = pick(&[
            "host",
            "content-length",
            "transfer-encoding",
            "connection",
            "expect",
            "content-type",
            " x",
            "x\0",
            "upgrade",
            "te",
            "trailer",
            "authorization",
            ":",
        ]);
        let value = pick(&[
            "x",
            "0",
            "5",
            "-1",
            "99999999999999999999",
            "chunked",
            "close",
            "keep-alive",
            "100-continue",
            "application/json",
            "",
            "\u{1b}[2J",
            "gzip, chunked",
            "chunked, identity",
            "h2c",
        ]);
        text += &format!("{name}: {value}{end}");
    }
    text += &end;
    let mut pick = |from: &[&str]| from[random.random_range(0..from.len())].to_owned();
    text += &pick(&[
        "",
        "{}",
        "{\"prompt\": [5], \"max_tokens\": 1}",
        "5\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff\r\n",
        "0\r\nx: y\r\n\r\n",
    ]);
    let mut bytes = text.into_bytes();
    if random.random_bool(0.7) && !bytes.is_empty() {
        for _ in 0..random.random_range(1..6) {
            let at = random.random_range(0..bytes.len());
            match random.random_range(0..3) {
                0 => bytes[at] = random.next_u32() as u8,
                1 => bytes.insert(at, random.next_u32() as u8),
                _ => bytes.truncate(at.max(1)),
            }
        }
    }
    bytes
}
