//! R12: connections that wait for their next request.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::arguments::Context;
use crate::client;
use crate::findings::{Findings, Problem};
use crate::load::{closed_loop, first_tokens, quantile, stream_body};
use crate::machine;
use crate::models;
use crate::server::Server;

pub async fn idle(context: Context) -> Result<Findings, Problem> {
    let model = models::tiny(4096)?;
    let count: usize = context.of(1000, 10_000);
    // Four places for those that are active.
    let limit = (count + 4).to_string();
    let server = Server::start(
        &context,
        &model.path,
        &["--max-connections", &limit, "--keep-alive", "600"],
    )
    .await?;
    let short = |random: &mut rand_pcg::Pcg64| stream_body(random, 16, 16);
    let time = Duration::from_secs(3);
    let alone = closed_loop(server.address, 2, time, short).await;
    let before = machine::memory(server.id).all;
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        held.push(keep(server.address).await?);
    }
    let grown = machine::memory(server.id).all.saturating_sub(before);
    let beside = closed_loop(server.address, 2, time, short).await;
    let mut found = Findings::default();
    found.at_least("idle connections", count as f64, "", count as f64);
    found.at_most(
        "memory of each",
        grown as f64 / 1024.0 / count as f64,
        "KiB",
        20.0,
    );
    let [ratio, fewest] =
        [&beside, &alone].map(|fates| quantile(first_tokens(fates), 0.99).as_secs_f64());
    found.timed_at_most(
        "first token p99 of active ones",
        ratio / fewest,
        "× alone",
        1.1,
    );
    for _ in 0..4 {
        held.push(keep(server.address).await?);
    }
    let began = Instant::now();
    let refused = client::get(server.address, "/livez").await?;
    found.within(
        "one too many is refused",
        began.elapsed(),
        Duration::from_millis(50),
    );
    found.always("with 503", usize::from(refused.status == 503), 1);
    let status = client::status_of(server.admin, "/readyz").await;
    found.always(
        "the admin port answers",
        usize::from(status == Some(200)),
        1,
    );
    Ok(found)
}

/// A connection that has had an answer and waits.
async fn keep(address: std::net::SocketAddr) -> std::io::Result<TcpStream> {
    let mut socket = TcpStream::connect(address).await?;
    socket
        .write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        .await?;
    let mut bytes = [0; 1024];
    let read = socket.read(&mut bytes).await?;
    if !bytes[..read].starts_with(b"HTTP/1.1 200") {
        return Err(std::io::Error::other("an idle connection was refused"));
    }
    Ok(socket)
}
