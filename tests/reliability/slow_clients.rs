//! R10, R11: clients that do not read, and clients that send a byte now and then.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::arguments::Context;
use crate::client::{self, COMPLETIONS, post_request};
use crate::findings::{Findings, Problem};
use crate::load::{self, closed_loop, first_tokens, quantile, random, stream_body};
use crate::machine;
use crate::models;
use crate::server::{Metrics, Server};

/// What the server gives a client that reads nothing (`write_stall`), a head, and a body.
const STALL: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);

/// R10: streams that nobody reads.
pub async fn never_read(context: Context) -> Result<Findings, Problem> {
    let streams = context.of(32, 64);
    let model = models::tiny(32768)?;
    let server = Server::start(
        &context,
        &model.path,
        &[
            "--max-batch",
            "80",
            "--kv-cache",
            "1GiB",
            "--prefix-cache",
            "off",
        ],
    )
    .await?;
    let mut random = random(6);
    let address = server.address;
    let mut found = Findings::default();

    // Both with a batch of the same size, because larger batches have longer steps.
    let readers = beside(address, streams, &mut random).await?;
    let before = without_pages(&server).await?;
    let mut sockets = Vec::new();
    let began = Instant::now();
    for _ in 0..streams {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(2 << 10)?;
        let mut socket = socket.connect(address).await?;
        socket
            .write_all(&post_request(
                COMPLETIONS,
                &stream_body(&mut random, 8, 30_000),
            ))
            .await?;
        sockets.push(socket);
    }
    let metrics = paused(&server, streams, began + STALL - 4 * SECOND).await?;
    let (at_rest, held) = (Instant::now(), without_pages(&server).await? - before);
    let others = beside(address, 0, &mut random).await?;
    // The short form does not wait for it: tests/service/pressure.rs has a server that cuts them off sooner.
    if context.of(false, true) {
        server
            .until("they are cut off", |metrics| {
                metrics.get("requests_paused") == 0.0
            })
            .await?;
        // Each was stalled before it was paused.
        found.within("cut off", at_rest.elapsed(), STALL + SECOND);
    }
    drop(sockets);
    // On a busy machine they have not as many tokens by now.
    let paused = metrics.get("requests_paused");
    found.timed_at_least("paused", paused, "", streams as f64);
    found.never(
        "places that the paused keep",
        (metrics.get("requests_running") + paused - streams as f64) as usize,
    );
    found.at_most(
        "memory of each",
        held / 1024.0 / streams as f64,
        "KiB",
        64.0,
    );
    let ratio = others.as_secs_f64() / readers.as_secs_f64();
    found.timed_at_most(
        "p99 between tokens of others",
        ratio,
        "× beside readers",
        1.2,
    );
    Ok(found)
}

/// Resident anonymous bytes without the pages of the KV cache: those are reserved at the start, and become resident when they
/// are written for the first time.
async fn without_pages(server: &Server) -> Result<f64, Problem> {
    // What the metrics say of memory is up to a second old.
    sleep(SECOND + SECOND / 10).await;
    let pages = server.metrics().await?;
    let pages = pages.get("memory_bytes{component=\"kv_cache\"}");
    Ok(machine::memory(server.id).anon as f64 - pages)
}

/// Waits until so many streams are paused, and no longer than until `end`.
async fn paused(server: &Server, streams: usize, end: Instant) -> Result<Metrics, Problem> {
    loop {
        let metrics = server.metrics().await?;
        if metrics.get("requests_paused") >= streams as f64 || Instant::now() > end {
            return Ok(metrics);
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// The 99th percentile between two tokens of four streams, beside as many others that are read.
async fn beside(
    address: SocketAddr,
    readers: usize,
    random: &mut rand_pcg::Pcg64,
) -> Result<Duration, Problem> {
    let mut others = JoinSet::new();
    for _ in 0..readers {
        let body = stream_body(random, 8, 30_000);
        others.spawn(async move { load::stream(address, &body).await.map(|_| ()) });
    }
    let mut measured = JoinSet::new();
    for _ in 0..4 {
        let body = stream_body(random, 8, 100);
        measured.spawn(async move { load::stream(address, &body).await });
    }
    let mut gaps = Vec::new();
    for events in measured.join_all().await {
        gaps.extend(events?.gaps());
    }
    others.abort_all();
    while others.join_next().await.is_some() {}
    Ok(quantile(gaps, 0.99))
}

/// R11: heads that never end, bodies that never end, and answers that are read a byte at a time.
pub async fn slow_requests(context: Context) -> Result<Findings, Problem> {
    let model = models::tiny(4096)?;
    let flags = ["--max-connections", "12000", "--max-queue", "64"];
    let mut found = Findings::default();
    for count in context.of(vec![300], vec![1000, 8000]) {
        let server = Server::start(&context, &model.path, &flags).await?;
        let address = server.address;
        let short = |random: &mut rand_pcg::Pcg64| stream_body(random, 16, 16);
        let idle = closed_loop(address, 2, Duration::from_secs(3), short).await;
        let mut attackers = JoinSet::new();
        for number in 0..count {
            attackers.spawn(attack(address, number));
        }
        sleep(SECOND).await;
        let honest = closed_loop(address, 2, Duration::from_secs(6), short).await;
        let [alone, beside] = [&idle, &honest].map(|fates| quantile(first_tokens(fates), 0.99));
        let mut reaped: Vec<Duration> = Vec::new();
        while let Some(took) = attackers.join_next().await {
            reaped.push(took??);
        }
        let name = |what: &str| format!("{what} ({count} attackers)");
        found.always(
            &name("honest answers"),
            first_tokens(&honest).len(),
            honest.len(),
        );
        found.timed_at_most(
            &name("honest p99"),
            beside.as_secs_f64() / alone.as_secs_f64(),
            "× alone",
            2.0,
        );
        found.within(
            &name("attackers cut off"),
            quantile(reaped, 1.0),
            DEADLINE + SECOND,
        );
        let status = client::status_of(server.admin, "/readyz").await;
        found.always(&name("ready"), usize::from(status == Some(200)), 1);
    }
    Ok(found)
}

/// Sends a byte every half second until the server closes the connection; returns how long that took.
async fn attack(address: SocketAddr, number: usize) -> std::io::Result<Duration> {
    // Not all at once, or the first bytes would wait in the backlog of connections.
    sleep(Duration::from_micros(100) * number as u32).await;
    let mut socket = TcpStream::connect(address).await?;
    let head = "POST /v1/completions HTTP/1.1\r\ncontent-type: application/json\r\n";
    let (start, byte) = match number % 2 {
        0 => (head.to_owned() + "x-slow: ", "y"),
        _ => (
            format!("{head}content-length: 1000\r\n\r\n{{\"prompt\": \""),
            "z",
        ),
    };
    let began = Instant::now();
    socket.write_all(start.as_bytes()).await?;
    let mut answer = [0; 1024];
    loop {
        match timeout(Duration::from_millis(500), socket.read(&mut answer)).await {
            Ok(Ok(0) | Err(_)) => return Ok(began.elapsed()),
            Ok(Ok(_)) => {}
            Err(_still_open) => {
                if socket.write_all(byte.as_bytes()).await.is_err() {
                    return Ok(began.elapsed());
                }
            }
        }
    }
}
