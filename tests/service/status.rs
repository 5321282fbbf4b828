//! Tests of `GET /status`, of the page at `/`, and of `microgranite status`.

use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Output};

use microgranite::http::access::{Access, ApiKeys};
use microgranite::http::status::{Phase, Status};
use serde_json::{Value, json};

use crate::fake::Fake;
use crate::harness::{MODEL, Options, Service};
use crate::process::{microgranite, running, running_with, tiny};

/// Checks that `value` has exactly the properties that `schema` describes, and theirs.
fn check(value: &Value, schema: &Value, place: &str) {
    let schema = match &schema["allOf"][0] {
        Value::Null => schema,
        inner => inner,
    };
    let schema = match &schema["anyOf"][0] {
        Value::Null => schema,
        inner => inner,
    };
    match value {
        Value::Object(fields) => {
            let Some(described) = schema["properties"].as_object() else {
                assert!(schema["additionalProperties"].is_object(), "{place}");
                return;
            };
            let names = |object: &serde_json::Map<String, Value>| {
                let mut names: Vec<String> = object.keys().cloned().collect();
                names.sort();
                names
            };
            assert_eq!(names(fields), names(described), "{place}");
            for (name, value) in fields {
                check(value, &described[name], &format!("{place}.{name}"));
            }
        }
        Value::Number(number) if number.is_u64() => {
            assert!(
                matches!(schema["type"].as_str(), Some("integer" | "number")),
                "{place}"
            );
        }
        Value::Number(_) => assert_eq!(schema["type"], "number", "{place}"),
        Value::String(text) => {
            let is_listed = schema["enum"]
                .as_array()
                .is_some_and(|all| all.contains(&json!(text)));
            assert!(is_listed || schema["type"] == "string", "{place}");
        }
        Value::Bool(_) => assert_eq!(schema["type"], "boolean", "{place}"),
        Value::Array(items) => {
            for item in items {
                check(item, &schema["items"], place);
            }
        }
        Value::Null => {}
    }
}

#[tokio::test]
async fn the_status_is_what_the_document_describes_and_what_the_metrics_say() {
    let service = Service::start(Fake::babbling());
    let before: Status = service.get("/status").await.json().await.unwrap();
    assert_eq!(
        (before.state, before.totals.generated_tokens),
        (Phase::Ready, 0)
    );
    let body = json!({"prompt": "abc", "max_tokens": 7});
    let answer = service.completion(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.bytes().await.unwrap();
    let value: Value = service.get("/status").await.json().await.unwrap();
    let document: Value = service.get("/openapi.json").await.json().await.unwrap();
    check(
        &value,
        &document["components"]["schemas"]["Status"],
        "status",
    );
    let now: Status = serde_json::from_value(value).unwrap();
    assert_eq!(now.model.unwrap().name, MODEL);
    assert_eq!(now.totals.generated_tokens, 7);
    assert_eq!(now.totals.requests["ok"], 1);
    assert_eq!(now.latency.first_token.count, 1);
    assert_eq!(now.latency.next_token.count, 6);
    assert!(now.memory.resident_anon > 0);
    let metrics = service.get("/metrics").await.text().await.unwrap();
    for line in [
        "microgranite_generation_tokens_total 7".to_owned(),
        format!("microgranite_batch_places {}", now.load.batch_places),
        format!("microgranite_batch_rows_count {}", now.totals.steps),
        format!(
            "microgranite_kv_cache_bytes{{state=\"reserved\"}} {}",
            now.memory.kv.reserved
        ),
    ] {
        assert!(metrics.lines().any(|other| other == line), "{line}");
    }

    let loading = Service::loading();
    let status: Status = loading.get("/status").await.json().await.unwrap();
    assert_eq!((status.state, status.model), (Phase::Loading, None));
}

#[tokio::test]
async fn the_page_needs_no_key_says_nothing_and_can_be_left_out() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "right").unwrap();
    let access = || Access {
        keys: Some(ApiKeys::read(file.path()).unwrap()),
        has_admin_port: true,
        ..Access::default()
    };
    let with = |access| {
        let options = Options {
            access,
            ..Options::default()
        };
        Service::with(Fake::babbling(), options)
    };
    let service = with(access());
    let page = service.get("/").await;
    assert_eq!(page.status(), 200);
    let policy = page.headers()["content-security-policy"].to_str().unwrap();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'sha256-"),
        "{policy}"
    );
    assert!(!policy.contains("unsafe"), "{policy}");
    let text = page.text().await.unwrap();
    assert!(!text.contains(MODEL), "what needs a key is not in the page");
    assert_eq!(service.get("/status").await.status(), 401);
    let post = service.client.post(service.url("/")).send().await.unwrap();
    assert_eq!(post.status(), 405);

    let without = with(Access {
        without_page: true,
        ..Access::default()
    });
    assert_eq!(without.get("/").await.status(), 404);
    assert_eq!(without.get("/status").await.status(), 200);
}

fn text(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn status(arguments: &[&str]) -> Command {
    microgranite(&[&["status"][..], arguments].concat())
}

#[test]
fn a_running_server_is_described_in_words_and_in_json() {
    let (_server, url) = running(&tiny());
    let body = json!({"prompt": "abc", "max_tokens": 9});
    let client = reqwest::blocking::Client::new();
    let sent = client
        .post(format!("{url}/v1/completions"))
        .json(&body)
        .send();
    assert_eq!(sent.unwrap().status(), 200);
    let (code, out, err) = text(status(&[&url]).output().unwrap());
    assert_eq!((code, &*err), (0, ""));
    for part in [
        &format!("granite-3-tiny on {url}: ready\n")[..],
        " M parameters, int8, context 512, ",
        "\n  load         0 of 16 running, 0 of ",
        "; 1 answered\n",
        "\n  tokens       9 written, 3 read (0 of them cached)\n",
        "\n  latency      first token ",
        " less than f32, ",
        "\n  resident     ",
        "\n  KV cache     ",
    ] {
        assert!(out.contains(part), "{part:?} is not in {out}");
    }
    // The port is enough, and the command has another name.
    let port = url.rsplit_once(':').unwrap().1;
    let mut command = microgranite(&["ps", &format!(":{port}"), "--json"]);
    let (code, out, err) = text(command.output().unwrap());
    assert_eq!((code, &*err), (0, ""));
    let value: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(value["totals"]["generated_tokens"], 9);
    assert_eq!(value["speed"], Value::Null);

    // The second reading has the speed.
    let mut watching = status(&[&url, "--watch", "1", "--json"]);
    let mut watching = crate::process::Running(
        watching
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let lines = std::io::BufRead::lines(std::io::BufReader::new(watching.0.stdout.take().unwrap()));
    let readings: Vec<Value> = lines
        .take(2)
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    assert_eq!(readings[0]["speed"], Value::Null);
    assert_eq!(readings[1]["speed"]["generated_tokens_per_second"], 0.0);
}

#[test]
fn what_is_no_server_of_ours_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    std::fs::write(&keys, "right").unwrap();
    let flags = [
        "--api-key-file",
        keys.to_str().unwrap(),
        "--admin-listen",
        "127.0.0.1:0",
    ];
    let (_server, keyed) = running_with(&tiny(), &flags);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed_url = closed.local_addr().unwrap().to_string();
    drop(closed);
    // It answers, but not as a server of ours.
    let other = crate::run::other_service();
    for (arguments, code, words) in [
        (
            &[&*closed_url][..],
            69,
            "start one with `microgranite serve`",
        ),
        (&[&*other], 69, "something else answers there"),
        (&[&*keyed], 78, "MICROGRANITE_API_KEY"),
        (
            &[&keyed, "--api-key", "wrong"],
            78,
            "does not accept this API key",
        ),
        (&["--watch", "0"], 64, "write a whole number from 1 to 3600"),
        (&["ftp://x"], 64, "write the address of a server"),
    ] {
        let (found, out, err) = text(status(arguments).output().unwrap());
        assert_eq!((found, &*out), (code, ""), "{arguments:?}: {err}");
        assert!(
            err.starts_with("error: ") && err.contains(words),
            "{arguments:?}: {err}"
        );
        assert_eq!(err.lines().count(), 1, "{err}");
    }
    let mut command = status(&[&*keyed]);
    command.env("MICROGRANITE_API_KEY", "right");
    assert_eq!(text(command.output().unwrap()).0, 0);
}
