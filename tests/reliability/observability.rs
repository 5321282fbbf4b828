//! R30, R31: what clients make up reaches neither the metrics nor the lines of the log.

use std::time::{Duration, Instant};

use rand::{Rng, RngExt};
use rand_pcg::Pcg64;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::arguments::Context;
use crate::client::{self, COMPLETIONS};
use crate::findings::{Findings, Problem};
use crate::load::{quantile, random};
use crate::models;
use crate::server::Server;

/// R30: the number of series does not depend on what is asked.
pub async fn series(context: Context) -> Result<Findings, Problem> {
    let model = models::tiny(512)?;
    let server = Server::start(&context, &model.path, &["--log", "error"]).await?;
    made_up(&server, 300).await?;
    let before = series_of(&server).await?;
    let count = context.of(3_000, 100_000);
    made_up(&server, count).await?;
    let after = series_of(&server).await?;
    let mut times = Vec::new();
    let mut size = 0;
    for _ in 0..50 {
        let began = Instant::now();
        size = client::get(server.admin, "/metrics").await?.body.len();
        times.push(began.elapsed());
    }
    let mut found = Findings::default();
    found.at_most(
        &format!("new series after {count} requests"),
        after.abs_diff(before) as f64,
        "",
        0.0,
    );
    found.shown("series", after as f64, "");
    found.at_most("/metrics", size as f64 / 1024.0, "KiB", 64.0);
    found.within("p99", quantile(times, 0.99), Duration::from_millis(50));
    Ok(found)
}

async fn series_of(server: &Server) -> Result<usize, Problem> {
    Ok(server.metrics().await?.0.len())
}

/// Requests with random paths, methods, headers, models and users.
async fn made_up(server: &Server, count: u64) -> Result<(), Problem> {
    let mut clients = JoinSet::new();
    for client in 0..8 {
        let address = server.address;
        clients.spawn(async move {
            let mut random = random(count + client);
            for _ in 0..count / 8 {
                let bytes = one(&mut random);
                // The status does not matter here.
                let _answer = client::exchange(address, &bytes).await;
            }
        });
    }
    clients.join_all().await;
    Ok(())
}

fn one(random: &mut Pcg64) -> Vec<u8> {
    let word = |random: &mut Pcg64| format!("{:x}", random.next_u64());
    let headers = format!(
        "user-agent: {}\r\nx-request-id: {}\r\nx-user: {}\r\n",
        word(random),
        word(random),
        word(random)
    );
    match random.random_range(0..4) {
        0 => client::request(
            "GET",
            &format!("/{}/{}?a={}", word(random), word(random), word(random)),
            &headers,
            b"",
        ),
        1 => client::request(
            ["PUT", "DELETE", "PATCH", "X-MADE-UP"][random.random_range(0..4)],
            COMPLETIONS,
            &headers,
            b"{}",
        ),
        2 => client::request(
            "GET",
            &format!("/v1/models/{}", word(random)),
            &headers,
            b"",
        ),
        _ => {
            let body = json!({"model": word(random), "user": word(random), "prompt": "a", "max_tokens": 1}).to_string();
            client::request("POST", COMPLETIONS, &headers, body.as_bytes())
        }
    }
}

/// R31: every line of the log is one JSON object without control characters, whatever is in the fields that are logged.
pub async fn log_lines(context: Context) -> Result<Findings, Problem> {
    const POISON: [&str; 8] = [
        "\u{1b}[2J\u{1b}[31m",
        "a\"}\n{\"message\":\"forged\"}",
        "%0a%0d{\"message\":\"forged\"}",
        "\u{7f}\u{8}\u{8}\u{8}",
        "\u{202e}\u{2028}\u{85}",
        "\\u0000\\n",
        "${jndi:ldap://localhost/a}",
        "{}{}%s%n",
    ];
    let model = models::tiny(512)?;
    let server = Server::start(
        &context,
        &model.path,
        &["--log", "trace", "--log-format", "json"],
    )
    .await?;
    let mut sent = 0;
    for poison in POISON {
        for raw in [poison.to_owned(), poison.replace(['\n', '\u{1b}'], "\t")] {
            let body = json!({"model": raw, "user": raw, "prompt": raw, "max_tokens": 1, raw.clone(): raw}).to_string();
            let good =
                json!({"prompt": raw, "user": raw, "max_tokens": 1, raw.clone(): raw}).to_string();
            for bytes in [
                client::request(
                    "POST",
                    COMPLETIONS,
                    &format!("x-request-id: {raw}\r\n"),
                    body.as_bytes(),
                ),
                client::request(
                    "POST",
                    COMPLETIONS,
                    &format!("user-agent: {raw}\r\ntraceparent: {raw}\r\n"),
                    good.as_bytes(),
                ),
                client::request("GET", &format!("/{raw}"), "", b""),
                client::request(
                    "GET",
                    &format!("/v1/models/{raw}?{raw}"),
                    &format!("authorization: {raw}\r\n"),
                    b"",
                ),
                client::request(&raw, "/", "", b""),
            ] {
                client::raw(server.address, &bytes, Duration::from_millis(500)).await?;
                sent += 1;
            }
        }
    }
    server
        .until("all are written", |_| !server.log().is_empty())
        .await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let log = server.log();
    let lines: Vec<&str> = log.lines().collect();
    let good = lines
        .iter()
        .filter(|line| serde_json::from_str::<Value>(line).is_ok_and(|line| line.is_object()));
    let forged = lines.iter().filter(|line| {
        serde_json::from_str::<Value>(line).is_ok_and(|line| line["message"] == "forged")
    });
    let mut found = Findings::default();
    found.at_least("requests", sent as f64, "", 80.0);
    found.at_least("lines", lines.len() as f64, "", 20.0);
    found.always("one JSON object each", good.count(), lines.len());
    found.never("forged lines", forged.count());
    let control = log
        .chars()
        .filter(|character| character.is_control() && *character != '\n');
    found.never("control characters", control.count());
    Ok(found)
}
