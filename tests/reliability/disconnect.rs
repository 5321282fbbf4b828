//! R9: a client that leaves frees what it held.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::arguments::Context;
use crate::client::{COMPLETIONS, Stream, post_request};
use crate::findings::{Findings, Problem};
use crate::load::{self, ids, quantile, random, stream_body};
use crate::models;
use crate::server::{Metrics, Server};

/// What the server gives a client that has closed its sending side and to which nothing is being sent: it may still read
/// its answer, and looks the same as one that has left.
const GRACE: Duration = Duration::from_millis(500);

/// The metrics are asked over and over on the admin port, which has a thread of its own.
async fn freed(server: &Server) -> Result<Duration, Problem> {
    server
        .until("its place is free", |metrics| {
            metrics.get("requests_running") == 0.0 && metrics.get("requests_waiting") == 0.0
        })
        .await
}

fn runs(metrics: &Metrics) -> bool {
    metrics.get("requests_running") >= 1.0
}

pub async fn disconnect(context: Context) -> Result<Findings, Problem> {
    let model = models::tiny(65536)?;
    // Prompts are not looked up, so that each is computed in full.
    let server = Server::start(
        &context,
        &model.path,
        &["--prefix-cache", "off", "--speculation", "0"],
    )
    .await?;
    let mut found = Findings::default();
    let mut random = random(3);
    let (mid, others) = (context.of(40, 500), context.of(20, 200));

    let events = load::stream(server.address, &stream_body(&mut random, 8, 200)).await?;
    let per_token = quantile(events.gaps().collect(), 0.5);
    let place = Duration::from_millis(100).max(2 * per_token);

    let mut decoding = Vec::new();
    for _ in 0..mid {
        let bytes = post_request(COMPLETIONS, &stream_body(&mut random, 8, 60000));
        let mut stream = Stream::open(server.address, &bytes).await?;
        stream.piece().await?;
        drop(stream);
        decoding.push(freed(&server).await?);
    }
    found.within(
        &format!("p99 of {mid} while decoding"),
        quantile(decoding, 0.99),
        place,
    );

    let mut whole = Vec::new();
    for _ in 0..others {
        let body = json!({"prompt": ids(&mut random, 8), "max_tokens": 60000, "ignore_eos": true});
        let socket = send(&server, &post_request(COMPLETIONS, &body)).await?;
        server.until("it runs", runs).await?;
        drop(socket);
        whole.push(freed(&server).await?);
    }
    found.within(
        &format!("of {others} without a stream"),
        quantile(whole, 0.99),
        GRACE + place,
    );

    // Longer than a step takes, so that the client leaves in the middle of its prompt.
    let mut reading = Vec::new();
    for _ in 0..others {
        let body = stream_body(&mut random, 30000, 10);
        let socket = send(&server, &post_request(COMPLETIONS, &body)).await?;
        server.until("it runs", runs).await?;
        drop(socket);
        reading.push(freed(&server).await?);
    }
    let limit = GRACE + Duration::from_millis(250);
    found.within(
        &format!("of {others} while reading prompts of 30,000"),
        quantile(reading, 0.99),
        limit,
    );
    let before = server.metrics().await?;
    let expected = (mid + 2 * others) as f64;
    found.always(
        "counted as cancelled",
        before.count("cancelled") as usize,
        expected as usize,
    );
    found.never(
        "counted as anything else but the first",
        before.count("ok") as usize - 1,
    );
    queued(&context, others, &mut found).await?;
    Ok(found)
}

/// Clients that leave while they wait for a place: their prompts are never computed.
async fn queued(context: &Context, count: usize, found: &mut Findings) -> Result<(), Problem> {
    let model = models::tiny(1 << 20)?;
    let flags = [
        "--max-batch",
        "1",
        "--kv-cache",
        "2GiB",
        "--context",
        "1000000",
    ];
    let server = Server::start(context, &model.path, &flags).await?;
    let mut random = random(4);
    let long = post_request(COMPLETIONS, &stream_body(&mut random, 8, 900_000));
    let mut holding = Stream::open(server.address, &long).await?;
    // A reader, so that its answer is not held up.
    let reader = tokio::spawn(async move { while let Ok(Some(_)) = holding.piece().await {} });
    server.until("the place is taken", runs).await?;
    let before = server.metrics().await?;
    let mut times = Vec::new();
    for _ in 0..count {
        let socket = send(
            &server,
            &post_request(COMPLETIONS, &stream_body(&mut random, 600, 5)),
        )
        .await?;
        server
            .until("it waits", |metrics| metrics.get("requests_waiting") >= 1.0)
            .await?;
        let left = Instant::now();
        drop(socket);
        server
            .until("the queue is empty", |metrics| {
                metrics.get("requests_waiting") == 0.0
            })
            .await?;
        times.push(left.elapsed());
    }
    let after = server.metrics().await?;
    let is_same = |name: &str| (after.get(name) - before.get(name)).abs() as usize;
    found.never(
        "tokens read of prompts that left the queue",
        is_same("prompt_tokens_total"),
    );
    found.within(
        &format!("of {count} in the queue"),
        quantile(times, 0.99),
        GRACE + Duration::from_millis(250),
    );
    found.always(
        "counted as cancelled in the queue",
        after.count("cancelled") as usize,
        count,
    );
    reader.abort();
    Ok(())
}

async fn send(server: &Server, bytes: &[u8]) -> Result<TcpStream, Problem> {
    let mut socket = TcpStream::connect(server.address).await?;
    socket.write_all(bytes).await?;
    Ok(socket)
}
