//! R13: SIGTERM loses no answer.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::arguments::Context;
use crate::client::{self, COMPLETIONS, Stream, post_request};
use crate::findings::{Findings, Problem};
use crate::load::{self, stream_body};
use crate::models;
use crate::server::Server;

/// Answers that run or wait when the signal comes.
const IN_FLIGHT: usize = 32;
const TOKENS: usize = 400;

/// What one run has shown.
#[derive(Default)]
struct Run {
    lost: usize,
    newcomers: Newcomers,
    readiness_off: Duration,
    exit_code: Option<i32>,
    exit_after: Duration,
}

pub async fn drain(context: Context) -> Result<Findings, Problem> {
    let model = models::tiny(16384)?;
    let mut runs = Vec::new();
    for _ in 0..context.of(3, 50) {
        runs.push(finish(&context, &model.path).await?);
    }
    let mut found = Findings::default();
    let sum = |of: fn(&Run) -> usize| runs.iter().map(of).sum();
    let longest = |of: fn(&Run) -> Duration| runs.iter().map(of).max().unwrap_or_default();
    found.never(
        &format!("lost of {}", runs.len() * IN_FLIGHT),
        sum(|run| run.lost),
    );
    found.never("newcomers dropped", sum(|run| run.newcomers.dropped.len()));
    found.never(
        "refused otherwise than as draining",
        sum(|run| run.newcomers.others.len()),
    );
    let refused = sum(|run| run.newcomers.refused);
    found.at_least("newcomers refused with 503", refused as f64, "", 1.0);
    for run in &runs {
        let odd = run.newcomers.dropped.iter().chain(&run.newcomers.others);
        odd.take(2).for_each(|odd| found.note(odd.clone()));
    }
    found.always(
        "exit code 0",
        sum(|run| usize::from(run.exit_code == Some(0))),
        runs.len(),
    );
    found.within(
        "readiness off",
        longest(|run| run.readiness_off),
        Duration::from_millis(100),
    );
    let second = Duration::from_secs(1);
    found.within(
        "exit after the last answer",
        longest(|run| run.exit_after),
        second,
    );
    at_the_deadline(&context, &model.path, &mut found).await?;
    Ok(found)
}

/// SIGTERM with 32 answers in flight and newcomers arriving.
async fn finish(context: &Context, model: &std::path::Path) -> Result<Run, Problem> {
    let mut server = Server::start(context, model, &[]).await?;
    let mut random = load::random(1);
    let mut answers = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let body = stream_body(&mut random, 8, TOKENS);
        let address = server.address;
        answers.spawn(async move {
            let events = load::stream(address, &body).await;
            let is_whole = events
                .is_ok_and(|events| events.is_complete() && events.tokens == Some(TOKENS as u64));
            (is_whole, Instant::now())
        });
    }
    server
        .until("all are in flight", |metrics| {
            metrics.get("requests_running") + metrics.get("requests_waiting") == IN_FLIGHT as f64
        })
        .await?;
    let newcomers = tokio::spawn(arrive(server.address));
    let sent = Instant::now();
    server.signal(Signal::TERM);
    while client::status_of(server.admin, "/readyz").await == Some(200) {}
    let readiness_off = sent.elapsed();
    let answers = answers.join_all().await;
    let last = answers.iter().map(|(_, at)| *at).max().unwrap_or(sent);
    let status = server.ended().await?;
    let newcomers = newcomers.await?;
    Ok(Run {
        lost: answers.iter().filter(|(is_whole, _)| !is_whole).count(),
        newcomers,
        readiness_off,
        exit_code: status.code(),
        exit_after: last.elapsed(),
    })
}

/// Sends short requests until the port is closed. A connection that is made while the port closes is cut before its
/// request is read: it counts as dropped only if the port is still open after it.
async fn arrive(address: SocketAddr) -> Newcomers {
    let mut seen = Newcomers::default();
    let mut cut = Vec::new();
    let body = json!({"prompt": [5], "max_tokens": 1});
    loop {
        let answer = client::post(address, COMPLETIONS, &body).await;
        if answer.is_ok() {
            seen.dropped.append(&mut cut);
        }
        match answer {
            Ok(answer) if answer.status == 503 && answer.text().contains("draining") => {
                seen.refused += 1;
            }
            // It came before the signal.
            Ok(answer) if answer.status == 200 => {}
            Ok(answer) => {
                let (status, text) = (answer.status, answer.text());
                seen.others.push(format!("{status} {text:.200}"));
            }
            Err(problem) if problem.kind() == std::io::ErrorKind::ConnectionRefused => {
                return seen;
            }
            Err(problem) => cut.push(problem.to_string()),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// What requests got that came around the signal.
#[derive(Default)]
struct Newcomers {
    refused: usize,
    others: Vec<String>,
    dropped: Vec<String>,
}

/// Answers that are longer than the time for a drain end in an error that clients can read.
async fn at_the_deadline(
    context: &Context,
    model: &std::path::Path,
    found: &mut Findings,
) -> Result<(), Problem> {
    const LIMIT: Duration = Duration::from_secs(1);
    let mut server = Server::start(context, model, &["--drain-timeout", "1"]).await?;
    let mut random = load::random(2);
    let mut answers = JoinSet::new();
    for _ in 0..16 {
        let bytes = post_request(COMPLETIONS, &stream_body(&mut random, 8, 16000));
        let stream = Stream::open(server.address, &bytes).await?;
        answers.spawn(stream.events());
    }
    let sent = Instant::now();
    server.signal(Signal::TERM);
    let answers = answers.join_all().await;
    let told = answers.iter().filter(|events| {
        events.is_done && events.is_whole && events.error.as_deref() == Some("draining")
    });
    found.always(
        "cut answers that end with an error and [DONE]",
        told.count(),
        answers.len(),
    );
    let status = server.ended().await?;
    found.within(
        "exit after the deadline",
        sent.elapsed().saturating_sub(LIMIT),
        Duration::from_secs(1),
    );
    found.always("exit code 0 then", usize::from(status.code() == Some(0)), 1);
    Ok(())
}
