//! R22, R23: who may ask what.

use std::hint::black_box;
use std::io::Write as _;
use std::time::{Duration, Instant};

use microgranite::http::access::ApiKeys;
use rand::{Rng, RngExt};
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::arguments::Context;
use crate::client::{self, exchange, request};
use crate::findings::{Findings, Problem};
use crate::load::random;
use crate::models;
use crate::server::Launch;

const KEY: &str = "sk-reliability-7f3a9c51e2";

fn key_file() -> std::io::Result<NamedTempFile> {
    let mut file = NamedTempFile::new()?;
    writeln!(file, "{KEY}\nanother-key-of-somebody")?;
    Ok(file)
}

/// R22: only the key itself opens, in constant time, and it is shown nowhere.
pub async fn keys(context: Context) -> Result<Findings, Problem> {
    let file = key_file()?;
    let model = models::tiny(512)?;
    let path = file.path().display().to_string();
    let flags = [
        "--api-key-file",
        &*path,
        "--log",
        "debug",
        "--log-format",
        "json",
    ];
    let server = Launch::new(&context, &model.path, &flags).start().await?;
    let bearer = |key: &str| format!("authorization: Bearer {key}\r\n");
    let mut bad: Vec<String> = vec![
        String::new(),
        "authorization:\r\n".into(),
        "authorization: Bearer\r\n".into(),
        format!("authorization: {KEY}\r\n"),
        format!("authorization: Basic {KEY}\r\n"),
        format!("authorization: Digest {KEY}\r\n"),
        format!("authorization: Bearer:{KEY}\r\n"),
        format!("authorization: Bearer {KEY},another-key-of-somebody\r\n"),
        format!("authorization: Bearer another-key-of-somebody {KEY}\r\n"),
        bearer(KEY) + &bearer(KEY),
        bearer(KEY) + &bearer("wrong"),
        format!("x-api-key: {KEY}\r\nx-api-key: {KEY}\r\n"),
        format!("x-api-key: Bearer {KEY}\r\n"),
        "x-api-key:\r\n".into(),
        format!("proxy-authorization: Bearer {KEY}\r\n"),
        format!("cookie: key={KEY}\r\n"),
    ];
    for key in [
        "",
        " ",
        &KEY[..KEY.len() - 1],
        &KEY[1..],
        &format!("{KEY}x"),
        &format!("x{KEY}"),
        &KEY.to_uppercase(),
        &format!("{KEY}{KEY}"),
        &format!("\"{KEY}\""),
        &format!("{KEY}%00"),
        &KEY.replace('-', "_"),
        &KEY.replace("7f", "7F"),
        &KEY.chars().rev().collect::<String>(),
        "*",
        "null",
        &"a".repeat(20_000),
    ] {
        bad.push(bearer(key));
    }
    let mut refused = 0;
    let mut found = Findings::default();
    for headers in &bad {
        let answer = exchange(server.address, &request("GET", "/v1/models", headers, b"")).await?;
        match answer.status {
            401 => refused += 1,
            status => found.note(format!("{headers:.60}: {status}")),
        }
    }
    found.at_least("wrong keys", bad.len() as f64, "", 30.0);
    found.always("refused with 401", refused, bad.len());
    let long = client::raw(
        server.address,
        &request("GET", "/v1/models", &bearer(&"a".repeat(1 << 20)), b""),
        client::PATIENCE,
    )
    .await?;
    found.always(
        "a key of 1 MiB is 431",
        usize::from(long.starts_with(b"HTTP/1.1 431")),
        1,
    );
    let mut good = 0;
    for headers in [
        bearer(KEY),
        format!("x-api-key: {KEY}\r\n"),
        format!("AUTHORIZATION: bearer {KEY}\r\n"),
    ] {
        let answer = exchange(server.address, &request("GET", "/v1/models", &headers, b"")).await?;
        good += usize::from(answer.status == 200);
    }
    found.always("right ones open", good, 3);

    let mut shown = 0;
    let admin = client::get(server.admin, "/metrics").await?.text();
    let command_line = std::fs::read_to_string(format!("/proc/{}/cmdline", server.id))?;
    let environment = std::fs::read_to_string(format!("/proc/{}/environ", server.id))?;
    for text in [
        server.log(),
        server.printed(),
        admin,
        command_line,
        environment,
    ] {
        shown += usize::from(text.contains(KEY));
    }
    found.never("shown in log, metrics, command line or environment", shown);
    let samples = context.of(200_000, 1_000_000);
    found.timed_at_most(
        &format!("Welch's t of {samples} look-ups"),
        timing(&file, samples)?.abs(),
        "",
        4.5,
    );
    Ok(found)
}

/// Whether the time of a look-up tells a key that shares its beginning with a right one from any other: Welch's t between
/// both classes, which come in random order. Beyond 4.5 they differ. The longest tenth is left out: the system was
/// busy with something else.
fn timing(file: &NamedTempFile, samples: usize) -> Result<f64, Problem> {
    let keys = ApiKeys::read(file.path())?;
    let mut random = random(11);
    let near = format!("{}x", &KEY[..KEY.len() - 1]);
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..samples {
        let class = (random.next_u32() % 2) as usize;
        let mut far = near.clone().into_bytes();
        // Both are made the same way, so that only the comparison differs.
        let from = if class == 0 { far.len() - 1 } else { 0 };
        for byte in &mut far[from..] {
            *byte = random.random_range(b'a'..=b'z');
        }
        let began = Instant::now();
        black_box(keys.client(black_box(&far)));
        times[class].push(began.elapsed());
    }
    let [near, far] = times.map(|mut times| {
        times.sort();
        times.truncate(times.len() * 9 / 10);
        moments(&times)
    });
    Ok((near.0 - far.0) / (near.1 + far.1).sqrt())
}

/// The mean, and its squared standard error.
fn moments(times: &[Duration]) -> (f64, f64) {
    let values = || times.iter().map(|time| time.as_nanos() as f64);
    let count = times.len() as f64;
    let mean = values().sum::<f64>() / count;
    let variance = values().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    (mean, variance / count)
}

/// R23: every route of the OpenAPI document, without a key.
pub async fn routes(context: Context) -> Result<Findings, Problem> {
    /// What a load balancer asks, and the answers to which say nothing of the model; and the page, which asks for a key.
    const PROBES: [&str; 8] = [
        "/",
        "/health",
        "/livez",
        "/ping",
        "/readyz",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/{name}/ready",
    ];
    let file = key_file()?;
    let model = models::tiny(512)?;
    let path = file.path().display().to_string();
    let server = Launch::new(&context, &model.path, &["--api-key-file", &path])
        .start()
        .await?;
    let key = format!("x-api-key: {KEY}\r\n");
    let document = exchange(server.address, &request("GET", "/openapi.json", &key, b""))
        .await?
        .json();
    let paths = document["paths"]
        .as_object()
        .ok_or("the document has paths")?;
    let mut found = Findings::default();
    let (mut open, mut closed, mut wrong_method, mut routes) = (Vec::new(), 0, 0, 0);
    for (path, methods) in paths {
        let concrete = path.replace("{name}", "x").replace("{*name}", "x");
        for method in methods
            .as_object()
            .into_iter()
            .flat_map(serde_json::Map::keys)
        {
            routes += 1;
            let method = method.to_uppercase();
            let answer = exchange(server.address, &request(&method, &concrete, "", b"{}")).await?;
            match answer.status {
                401 => closed += 1,
                _ => open.push(path.clone()),
            }
        }
        let answer = exchange(server.address, &request("PATCH", &concrete, &key, b"{}")).await?;
        wrong_method += usize::from(answer.status == 405 && answer.header("allow").is_some());
    }
    open.sort();
    found.at_least("routes", f64::from(routes), "", 10.0);
    found.always("of them need a key", closed, routes as usize - PROBES.len());
    found.always("unknown methods are 405", wrong_method, paths.len());
    let unexpected = open
        .iter()
        .filter(|path| !PROBES.contains(&path.as_str()))
        .count();
    found.never("open but the probes", unexpected);
    found.note(format!("open: {}", open.join(" ")));
    let mut leaks = 0;
    for path in PROBES {
        let answer = client::get(server.address, path).await?;
        let body: Value = answer.json();
        leaks += usize::from(
            answer.text().contains(models::NAME)
                || body.as_object().is_some_and(|fields| fields.len() > 2),
        );
    }
    found.never("probes that name the model", leaks);
    Ok(found)
}
