//! Load, open and closed, and what it measures.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::client::{COMPLETIONS, Events, Stream, post_request};
use crate::models::IDS;

/// What became of one request.
#[derive(Debug)]
pub enum Fate {
    /// An answer, complete.
    Done { first: Duration, finished: Instant },
    /// 429, with a `Retry-After`.
    Refused { took: Duration },
    /// Any other status, or a 429 without `Retry-After`.
    Status(u16),
    /// No answer, or a part of one.
    Broken(String),
}

/// A streamed completion with a prompt of random ids.
pub fn stream_body(random: &mut Pcg64, prompt: usize, tokens: usize) -> Value {
    json!({
        "prompt": ids(random, prompt), "max_tokens": tokens, "stream": true, "ignore_eos": true, "seed": 1,
        "stream_options": {"include_usage": true},
    })
}

pub fn ids(random: &mut Pcg64, count: usize) -> Vec<u32> {
    (0..count).map(|_| random.random_range(IDS)).collect()
}

pub fn random(seed: u64) -> Pcg64 {
    Pcg64::seed_from_u64(seed)
}

/// Sends one request for a stream and reads it to its end.
pub async fn ask(address: SocketAddr, bytes: Vec<u8>) -> Fate {
    let began = Instant::now();
    let stream = match Stream::open(address, &bytes).await {
        Ok(stream) => stream,
        Err(problem) => return Fate::Broken(problem.to_string()),
    };
    match stream.status {
        200 => {
            let events = stream.events().await;
            match events.arrivals.first() {
                Some(first) if events.is_complete() => Fate::Done {
                    first: *first - began,
                    finished: Instant::now(),
                },
                _ => Fate::Broken(format!("{:?} {:?}", events.error, events.problem)),
            }
        }
        429 if stream.head.contains("\r\nretry-after: ") => Fate::Refused {
            took: began.elapsed(),
        },
        status => Fate::Status(status),
    }
}

/// Requests at a fixed average rate, whatever becomes of those before; the gaps are those of independent clients.
pub async fn open_loop(
    address: SocketAddr,
    per_second: f64,
    time: Duration,
    mut body: impl FnMut(&mut Pcg64) -> Value,
) -> Vec<Fate> {
    let mut random = random(7);
    let mut requests = JoinSet::new();
    let began = Instant::now();
    let mut next = Duration::ZERO;
    while next < time {
        sleep(next.saturating_sub(began.elapsed())).await;
        requests.spawn(ask(address, post_request(COMPLETIONS, &body(&mut random))));
        let gap = -(1.0 - random.random::<f64>()).ln() / per_second;
        next += Duration::from_secs_f64(gap);
    }
    requests.join_all().await
}

/// Clients that each send a request when the one before is answered. Returns the answers, and when they were measured.
pub async fn closed_loop(
    address: SocketAddr,
    clients: u64,
    time: Duration,
    body: impl Fn(&mut Pcg64) -> Value + Copy + Send + 'static,
) -> Vec<Fate> {
    let mut all = JoinSet::new();
    let end = Instant::now() + time;
    for client in 0..clients {
        all.spawn(async move {
            let (mut random, mut fates) = (random(client), Vec::new());
            while Instant::now() < end {
                fates.push(ask(address, post_request(COMPLETIONS, &body(&mut random))).await);
            }
            fates
        });
    }
    all.join_all().await.into_iter().flatten().collect()
}

/// Completed answers per second between two moments.
pub fn rate(fates: &[Fate], from: Instant, to: Instant) -> f64 {
    let done = fates.iter().filter(|fate| match fate {
        Fate::Done { finished, .. } => (from..to).contains(finished),
        _ => false,
    });
    done.count() as f64 / (to - from).as_secs_f64()
}

/// The times until the first token.
pub fn first_tokens(fates: &[Fate]) -> Vec<Duration> {
    let times = fates.iter().filter_map(|fate| match fate {
        Fate::Done { first, .. } => Some(*first),
        _ => None,
    });
    times.collect()
}

/// A streamed answer to a prompt of random ids, which must complete.
pub async fn stream(address: SocketAddr, body: &Value) -> std::io::Result<Events> {
    let stream = Stream::open(address, &post_request(COMPLETIONS, body)).await?;
    Ok(stream.events().await)
}

/// The smallest value that is at least as large as this share of all.
pub fn quantile(mut values: Vec<Duration>, share: f64) -> Duration {
    values.sort();
    let at = (share * values.len() as f64).ceil() as usize;
    values
        .get(at.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}
