//! R1, R24, R25: bad requests are refused by name, and nothing else happens.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::task::JoinSet;

use crate::arguments::Context;
use crate::client::{self, Answer, COMPLETIONS};
use crate::findings::{Findings, Problem};
use crate::inputs::Inputs;
use crate::machine;
use crate::models::{self, of_tests};
use crate::requests::good_request;
use crate::server::{Launch, Server};

/// What no body may contain: paths of the machine, and addresses in memory.
const LEAKS: [&str; 7] = [
    "/root", "/tmp/", "/home/", "src/", ".rs:", "0x7f", "panicked",
];

/// R1: valid requests of every route with some of their parts replaced.
pub async fn bad_inputs(context: Context) -> Result<Findings, Problem> {
    let model = models::tiny(512)?;
    let template = of_tests("clients/chatml-tools.jinja").display().to_string();
    let mut server = Server::start(&context, &model.path, &["--chat-template", &template]).await?;
    let total = context.of(2_000, 20_000);
    let mut inputs = Inputs::new(20_251_127);
    let (mut refused, mut server_errors, mut dropped, mut shapeless, mut leaking) = (0, 0, 0, 0, 0);
    let mut examples = Vec::new();
    let mut running = JoinSet::new();
    for sent in 0..total {
        let (path, body) = spoiled(&mut inputs);
        let address = server.address;
        running.spawn(async move {
            (
                client::exchange(address, &client::request("POST", path, "", body.as_bytes()))
                    .await,
                path,
                body,
            )
        });
        // Four at once, as clients come.
        while running.len() >= 4 || (sent + 1 == total && !running.is_empty()) {
            let (answer, path, body) = running.join_next().await.expect("one runs")?;
            let Ok(answer) = answer else {
                dropped += 1;
                examples.push(format!("dropped: {path} {body:.300}"));
                continue;
            };
            let is_capacity = matches!(answer.status, 429 | 503);
            refused += usize::from((400..500).contains(&answer.status));
            let problem = if answer.status >= 500 && !is_capacity {
                server_errors += 1;
                "server error"
            } else if answer.status >= 400 && !has_shape(path, &answer) {
                shapeless += 1;
                "no error body"
            } else if answer.status >= 400
                && LEAKS
                    .iter()
                    .any(|leak| answer.text().contains(leak) && !body.contains(leak))
            {
                leaking += 1;
                "leak"
            } else {
                continue;
            };
            examples.push(format!(
                "{problem}: {path} {body:.300} → {} {:.300}",
                answer.status,
                answer.text()
            ));
        }
    }
    let mut found = Findings::default();
    found.at_least("requests", total as f64, "", total as f64);
    found.at_least("refused", refused as f64, "", total as f64 / 4.0);
    found.never("server errors", server_errors);
    found.never("dropped connections", dropped);
    found.never("errors without the fields of an error", shapeless);
    found.never("paths and addresses in bodies", leaking);
    found.always("alive", usize::from(server.is_alive()), 1);
    for example in examples.into_iter().take(3) {
        found.note(example);
    }
    Ok(found)
}

/// A request with one to three parts replaced, removed or repeated, or damaged as text.
fn spoiled(inputs: &mut Inputs) -> (&'static str, String) {
    const WORDS: [&str; 12] = [
        "{", "}", "[", "]", "\"", ",", ":", "null", "\\u0000", "\u{feff}", "1e999", "\\ud800",
    ];
    let (path, good) = good_request(inputs);
    let mut body = inputs.spoil_value(&good);
    if let Some(fields) = body.as_object_mut()
        && !path.contains("tokenize")
        && fields.get("max_tokens").is_none_or(Value::is_null)
    {
        fields.insert("max_tokens".into(), json!(2));
    }
    let text = body.to_string();
    match inputs.once_in(4) {
        true => (path, inputs.spoil(&text, &WORDS)),
        false => (path, text),
    }
}

/// Whether an error body has what OpenAI's clients read.
fn has_shape(path: &str, answer: &Answer) -> bool {
    let body = answer.json();
    let error = &body["error"];
    let has = |field: &str| error.get(field).is_some();
    error["message"].is_string()
        && error["type"].is_string()
        && (path.contains("messages") || (has("code") && has("param")))
}

/// A field with a value that is out of range.
struct Case {
    path: &'static str,
    field: String,
    body: String,
}

/// R25: each number that a request may set, with values beyond its range.
pub async fn parameter_limits(context: Context) -> Result<Findings, Problem> {
    let model = models::tiny(512)?;
    let template = of_tests("clients/chatml-tools.jinja").display().to_string();
    let server = Server::start(&context, &model.path, &["--chat-template", &template]).await?;
    let cases = cases();
    let (mut refused, mut others) = (0, Vec::new());
    for case in &cases {
        let bytes = client::request("POST", case.path, "", case.body.as_bytes());
        let answer = client::exchange(server.address, &bytes).await?;
        let message = answer.json()["error"]["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        // What is no number of JSON is refused before the fields are looked at.
        let is_no_json = ["NaN", "Infinity", "1e999"]
            .iter()
            .any(|value| case.body.contains(value));
        let is_named = (is_no_json && message.contains("JSON"))
            || message.contains(&case.field)
            || answer.json()["error"]["param"] == *case.field;
        if answer.status == 400 && is_named {
            refused += 1;
        } else {
            others.push(format!(
                "{} {} → {} {message}",
                case.path, case.body, answer.status
            ));
        }
    }
    let mut found = Findings::default();
    found.at_least("cases", cases.len() as f64, "", 120.0);
    found.always(
        "refused with 400 and the field's name",
        refused,
        cases.len(),
    );
    others
        .iter()
        .take(3)
        .for_each(|other| found.note(other.clone()));
    Ok(found)
}

fn cases() -> Vec<Case> {
    // As text, because JSON has no names for some of them.
    const NUMBERS: [&str; 9] = [
        "NaN",
        "Infinity",
        "1e999",
        "-1e308",
        "1e308",
        "-2",
        "9223372036854775808",
        "-9223372036854775809",
        "\"1\"",
    ];
    const WHOLE: [&str; 8] = [
        "n",
        "max_tokens",
        "top_k",
        "min_tokens",
        "seed",
        "truncate_prompt_tokens",
        "best_of",
        "logprobs",
    ];
    const REAL: [&str; 6] = [
        "temperature",
        "top_p",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
    ];
    const CHAT: [&str; 4] = ["n", "max_completion_tokens", "top_logprobs", "temperature"];
    let mut cases = Vec::new();
    let mut add = |path: &'static str, field: &str, value: &str| {
        let rest = if path == COMPLETIONS {
            r#""prompt": "a""#
        } else {
            r#""messages": [{"role": "user", "content": "a"}], "logprobs": true"#
        };
        cases.push(Case {
            path,
            field: field.to_owned(),
            body: format!("{{{rest}, \"{field}\": {value}}}"),
        });
    };
    for value in NUMBERS {
        for field in WHOLE {
            // Any 64-bit integer is a seed, and a prompt of any length may be truncated to any number.
            let is_fine = match field {
                "seed" => value == "-2",
                "truncate_prompt_tokens" => value == "9223372036854775808",
                _ => false,
            };
            if !is_fine {
                add(COMPLETIONS, field, value);
            }
        }
        for field in REAL {
            if !(value == "-2" && ["presence_penalty", "frequency_penalty"].contains(&field)) {
                add(COMPLETIONS, field, value);
            }
        }
        for field in CHAT {
            add("/v1/chat/completions", field, value);
        }
    }
    for (field, value) in [
        ("prompt", "[320]"),
        ("prompt", "[-1]"),
        ("prompt", "[18446744073709551616]"),
        ("prompt", "[]"),
        ("stop_token_ids", "[320]"),
        ("stop_token_ids", "[-1]"),
        ("allowed_token_ids", "[320]"),
        ("logit_bias", r#"{"320": 1}"#),
        ("logit_bias", r#"{"5": 1e999}"#),
        ("logit_bias", r#"{"5": 101}"#),
        ("logprobs", "21"),
        ("n", "17"),
        ("n", "0"),
        ("max_tokens", "513"),
        ("stop", &format!("[{}\"x\"]", "\"x\",".repeat(17))),
        ("truncate_prompt_tokens", "0"),
    ] {
        let mut body = Map::new();
        let known: Option<Value> = serde_json::from_str(value).ok();
        body.insert("prompt".into(), json!("a"));
        let text = match known {
            Some(value) => {
                body.insert(field.into(), value);
                Value::Object(body).to_string()
            }
            None => format!("{{\"prompt\": \"a\", \"{field}\": {value}}}"),
        };
        cases.push(Case {
            path: COMPLETIONS,
            field: field.to_owned(),
            body: text,
        });
    }
    cases
}

/// R24: requests that are too large in one way or another cost little.
pub async fn sizes(context: Context) -> Result<Findings, Problem> {
    let model = models::tiny(512)?;
    let server = Launch::new(&context, &model.path, &[]).start().await?;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n";
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n");
    let chunks = |count: usize| {
        [
            chunked.as_bytes(),
            &b"1\r\n \r\n".repeat(count),
            b"0\r\n\r\n",
        ]
        .concat()
    };
    let with_body = |more: &str, body: &str| {
        format!("{head}{more}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    let deep = |open: &str, close: &str| {
        format!(
            "{{\"prompt\": {}{}}}",
            open.repeat(10_000),
            close.repeat(10_000)
        )
    };
    let many: String = (0..70).map(|n| format!("x-{n}: y\r\n")).collect();
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        (
            "70 headers",
            format!("GET /livez HTTP/1.1\r\n{many}\r\n").into_bytes(),
            431,
        ),
        (
            "a header of 64 KiB",
            format!("GET /livez HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(64 << 10)).into_bytes(),
            431,
        ),
        (
            "a URI of 64 KiB",
            format!("GET /{} HTTP/1.1\r\n\r\n", "y".repeat(64 << 10)).into_bytes(),
            431,
        ),
        ("a body of 8 MiB", with_body("", &" ".repeat(8 << 20)), 413),
        ("1,100,000 chunks of a byte", chunks(1_100_000), 413),
        ("lists 10,000 deep", with_body("", &deep("[", "]")), 400),
        (
            "objects 10,000 deep",
            with_body("", &deep("{\"a\":", "}")),
            400,
        ),
        (
            "a compressed body",
            with_body("content-encoding: gzip\r\n", "\u{1f}\u{8b}\u{8}"),
            415,
        ),
        (
            "another type",
            with_body("", "{}").into_iter().collect::<Vec<u8>>(),
            400,
        ),
    ];
    let mut found = Findings::default();
    let mut statuses = 0;
    // The first round finds the buffers that stay.
    rounds(server.address, &cases, 2).await?;
    let before = machine::memory(server.id).anon;
    let most = Duration::from_secs(1);
    let mut costly = Duration::ZERO;
    for (name, bytes, status) in &cases {
        let before = machine::processor_time(server.id);
        let answer = client::raw(server.address, bytes, client::PATIENCE).await?;
        costly = costly.max(machine::processor_time(server.id) - before);
        let expected = format!("HTTP/1.1 {status}");
        if answer.starts_with(expected.as_bytes()) {
            statuses += 1;
        } else {
            found.note(format!("{name}: {:.40}", String::from_utf8_lossy(&answer)));
        }
    }
    found.always("with their status", statuses, cases.len());
    found.at_most(
        "processor time of one",
        costly.as_secs_f64(),
        "s",
        most.as_secs_f64(),
    );
    let count = rounds(server.address, &cases, context.of(4, 12)).await?;
    let grown = machine::memory(server.id).anon.saturating_sub(before);
    found.at_most(
        &format!("memory after {count} more"),
        grown as f64 / 1024.0,
        "KiB",
        1024.0,
    );
    Ok(found)
}

async fn rounds(
    address: SocketAddr,
    cases: &[(&str, Vec<u8>, u16)],
    count: usize,
) -> Result<usize, Problem> {
    for _ in 0..count {
        for (_, bytes, _) in cases {
            client::raw(address, bytes, client::PATIENCE).await?;
        }
    }
    Ok(count * cases.len())
}
