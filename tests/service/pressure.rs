//! Tests with many clients, with clients that misbehave, and of shutdown.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use microgranite::engine;
use microgranite::http::limits::Limits;
use microgranite::http::server;
use microgranite::model::{self, Forward, ModelConfig};
use microgranite::sources;
use microgranite::telemetry::Metrics;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::fake::Fake;
use crate::harness::{
    Options, PROGRAM, Service, byte_tokens, first_event, fixture, read_events, streamed_text,
};

const CLIENTS: usize = 32;

/// The request of client `n`. Requests differ in prompt, length, sampling and form.
fn request(n: usize) -> Value {
    let prompt = format!(
        "client {n} says: {}",
        "on the way to the sea ".repeat(n % 5)
    );
    let mut body = json!({"prompt": prompt, "max_tokens": 20 + 3 * n, "seed": n});
    match n % 3 {
        0 => body["temperature"] = json!(0),
        1 => body["top_k"] = json!(5),
        _ => body["top_p"] = json!(0.8),
    }
    if n % 4 == 1 {
        body["stop"] = json!(["the", "qu"]);
    }
    body
}

/// Sends the request of client `n` and returns the text; every other client streams.
async fn ask(service: &Service, n: usize) -> String {
    if n.is_multiple_of(2) {
        service.text(request(n)).await
    } else {
        streamed_text(&service.events(request(n)).await, 0)
    }
}

/// Asserts that each client gets the same bytes among 31 others as alone, and that disconnecting half of them changes
/// nothing for the rest.
async fn clients_do_not_touch_each_other(model: impl Forward + 'static) {
    let service = Service::with(model, Options::default());
    let mut alone = Vec::new();
    for n in 0..CLIENTS {
        alone.push(ask(&service, n).await);
    }
    assert!(alone.iter().filter(|text| !text.is_empty()).count() > CLIENTS / 2);

    let together = join_all((0..CLIENTS).map(|n| ask(&service, n))).await;
    assert_eq!(together, alone);
    service.idle_within_a_second().await;

    // Half of the clients stream a long answer, read its first event and disconnect.
    let killed = (0..CLIENTS).step_by(2).map(|n| {
        let service = &service;
        async move {
            let mut body = request(n);
            body["stream"] = json!(true);
            body["max_tokens"] = json!(300);
            drop(first_event(service.completion(&body).send().await.unwrap()).await);
        }
    });
    let kept = (1..CLIENTS).step_by(2).map(|n| {
        let service = &service;
        async move { (n, ask(service, n).await) }
    });
    let (_, survivors) = tokio::join!(join_all(killed), join_all(kept));
    for (n, text) in survivors {
        assert_eq!(text, alone[n], "client {n}");
    }
    service.idle_within_a_second().await;
}

#[tokio::test]
async fn clients_of_a_cheap_model_do_not_touch_each_other() {
    let model = Fake::babbling().with_step_time(Duration::from_millis(1));
    clients_do_not_touch_each_other(model).await;
}

#[tokio::test]
async fn clients_of_the_int8_model_do_not_touch_each_other() {
    let checkpoint = sources::open(
        &sources::Reference::Folder(fixture("granite-3-tiny")),
        &sources::Settings::from_variables(|_| None, false),
    )
    .unwrap();
    let config = ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config).unwrap();
    let settings = model::Settings {
        threads: 2,
        slots: 4,
        snapshots: 0,
        kv_bytes: 256 * model::footprint(&config).kv_page,
        context: None,
        weights: model::Placement::default(),
    };
    let granite = model::load(&checkpoint, &settings, &mut |_, _| {}).unwrap();
    clients_do_not_touch_each_other(granite).await;
}

/// An engine with room for one running and one waiting request.
fn small() -> engine::Settings {
    engine::Settings {
        max_batch: 1,
        max_queue: 1,
        ..engine::Settings::default()
    }
}

#[tokio::test]
async fn a_full_queue_is_429_with_a_time_to_retry_and_then_there_is_room_again() {
    let options = Options {
        engine: small(),
        ..Options::default()
    };
    let model = Fake::babbling().with_step_time(Duration::from_millis(5));
    let service = Service::with(model, options);
    let long = json!({"prompt": "x", "max_tokens": 4000, "stream": true});
    let running = first_event(service.completion(&long).send().await.unwrap()).await;
    let waiting = tokio::spawn(service.completion(&long).send());
    let waits = |metrics: &Metrics| metrics.requests_waiting.get() == 1;
    service
        .within(Duration::from_secs(5), "one waits", waits)
        .await;

    for body in [
        json!({"prompt": "x"}),
        json!({"prompt": ["x", "y"], "stream": true}),
    ] {
        let response = service.completion(&body).send().await.unwrap();
        assert_eq!(response.status(), 429);
        let header = |name| {
            response.headers()[name]
                .to_str()
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        let (seconds, milliseconds) = (header("retry-after"), header("retry-after-ms"));
        assert!((1..=60).contains(&seconds), "{seconds}");
        assert_eq!(milliseconds.div_ceil(1000), seconds);
        let error: Value = response.json().await.unwrap();
        assert_eq!(error["error"]["code"], "queue_full");
        assert_eq!(error["error"]["type"], "rate_limit_error");
    }
    assert_eq!(
        service.get("/readyz").await.status(),
        200,
        "busy is not unready"
    );
    // Three can never fit, so a retry would not help.
    let body = json!({"prompt": ["x", "y", "z"]});
    assert_eq!(
        service.completion(&body).send().await.unwrap().status(),
        400
    );

    waiting.abort();
    drop(running);
    service.idle_within_a_second().await;
    service.complete(json!({"prompt": "x"})).await;
    assert_eq!(service.count("rejected"), 2);
}

#[tokio::test]
async fn draining_refuses_newcomers_and_finishes_what_runs() {
    let model = Fake::reciting(byte_tokens("abc")).with_step_time(Duration::from_millis(5));
    let mut service = Service::with(model, Options::default());
    let body = json!({"prompt": "x", "max_tokens": 300, "temperature": 0, "stream": true});
    let running = service.completion(&body).send().await.unwrap();

    let drained = service.drain(Duration::from_secs(20));
    let mut ready = service.get("/readyz").await;
    for _ in 0..100 {
        if ready.status() == 503 {
            break;
        }
        ready = service.get("/readyz").await;
    }
    let error: Value = ready.json().await.unwrap();
    assert_eq!(error["error"]["code"], "draining");
    assert_eq!(service.get("/livez").await.status(), 200);
    let newcomer = service
        .completion(&json!({"prompt": "x"}))
        .send()
        .await
        .unwrap();
    assert_eq!(newcomer.status(), 503);
    assert_eq!(newcomer.headers()["retry-after"], "1");

    let text = streamed_text(&read_events(running).await, 0);
    assert_eq!(text.len(), 300, "the running answer is complete");
    assert!(drained.await.unwrap(), "everything was finished");
    let refused = service.client.get(service.url("/livez")).send().await;
    assert!(refused.is_err(), "the port is closed");
}

#[tokio::test]
async fn a_request_whose_grammar_still_compiles_is_finished_by_a_drain() {
    // The program that tries the grammar says that it has begun, and goes on when the test lets it.
    let folder = tempfile::tempdir().unwrap();
    let (begun, go) = (folder.path().join("begun"), folder.path().join("go"));
    let program = folder.path().join("program");
    let (begun_path, go_path) = (begun.display(), go.display());
    let script = format!(
        "#!/bin/sh\n: > {begun_path}\nwhile [ ! -e {go_path} ]; do /bin/sleep 0.02; done\nexec {PROGRAM} \"$@\"\n"
    );
    std::fs::write(&program, script).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, executable).unwrap();
    let program: &'static str = Box::leak(program.display().to_string().into_boxed_str());
    let mut service = Service::with(
        Fake::babbling(),
        Options {
            grammar_program: Some(program),
            ..Options::default()
        },
    );
    let body = json!({"prompt": "x", "max_tokens": 20, "structured_outputs": {"choice": ["yes"]}});
    let request = service.completion(&body).send();
    let test = async {
        while !begun.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let drained = service.drain(Duration::from_secs(60));
        while service.get("/readyz").await.status() != 503 {}
        std::fs::write(&go, "").unwrap();
        drained.await.unwrap()
    };
    let (response, is_finished) = tokio::join!(request, test);
    let response = response.unwrap();
    assert_eq!(response.status(), 200);
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer["choices"][0]["text"], "yes");
    assert!(is_finished);
}

#[tokio::test]
async fn at_the_end_of_the_drain_time_streams_end_with_an_error() {
    let model = Fake::babbling().with_step_time(Duration::from_millis(5));
    let mut service = Service::with(model, Options::default());
    let body = json!({"prompt": "x", "max_tokens": 4000, "stream": true});
    let running = service.completion(&body).send().await.unwrap();
    let drained = service.drain(Duration::from_millis(300));
    let events = read_events(running).await;
    assert_eq!(events.last().unwrap()["error"]["code"], "draining");
    assert!(events.len() > 10);
    assert!(!drained.await.unwrap(), "something was cut off");
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off() {
    let options = Options {
        server: server::Settings {
            write_stall: Duration::from_millis(500),
            ..server::Settings::default()
        },
        ..Options::default()
    };
    const TOKENS: u64 = 400_000;
    let model = Fake::reciting(byte_tokens("abc")).with_context(TOKENS as usize + 64);
    let service = Service::with(model, options);

    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut socket = socket.connect(service.address).await.unwrap();
    let body =
        json!({"prompt": "x", "max_tokens": TOKENS, "stream": true, "temperature": 0}).to_string();
    let head = "POST /v1/completions HTTP/1.1\r\ncontent-type: application/json\r\n";
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    socket.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");

    let cut_off = |_: &_| service.count("cancelled") == 1;
    service
        .within(Duration::from_secs(15), "the client is dropped", cut_off)
        .await;
    service.idle_within_a_second().await;

    // Only the bytes that were already in buffers arrive: few, though the answer was longer.
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).await.unwrap();
    assert!((1..64 << 10).contains(&rest.len()), "{}", rest.len());
}

/// A service with memory for only two bodies of the greatest length.
fn short_of_memory() -> Options {
    Options {
        limits: Limits {
            body_bytes: 100 << 10,
            memory_bytes: 250 << 10,
            ..Limits::default()
        },
        ..Options::default()
    }
}

/// A request for one token, with a body of `length` bytes.
fn long_request(length: usize) -> String {
    let mut body = json!({"prompt": "x", "max_tokens": 1}).to_string();
    body += &" ".repeat(length - body.len());
    body
}

#[tokio::test]
async fn slow_bodies_give_way_to_others_and_short_requests_never_wait() {
    let service = Service::with(Fake::babbling(), short_of_memory());
    let mut slow = Vec::new();
    for _ in 0..2 {
        let mut socket = TcpStream::connect(service.address).await.unwrap();
        let head = "POST /v1/completions HTTP/1.1\r\ncontent-type: application/json\r\n";
        let head = format!("{head}content-length: {}\r\n\r\n{{", 100 << 10);
        socket.write_all(head.as_bytes()).await.unwrap();
        slow.push(socket);
    }
    let long = || {
        let request = service.client.post(service.url("/v1/completions"));
        let request = request.header("content-type", "application/json");
        request.body(long_request(90 << 10)).send()
    };
    // Waits until both have arrived.
    let start = Instant::now();
    let refused = loop {
        let answer = long().await.unwrap();
        if answer.status() != 200 {
            break answer;
        }
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "the memory is taken"
        );
    };
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "1");
    let error: Value = refused.json().await.unwrap();
    assert_eq!(error["error"]["code"], "out_of_memory");
    service
        .complete(json!({"prompt": "x", "max_tokens": 1}))
        .await;

    while long().await.unwrap().status() != 200 {
        let limit = Duration::from_secs(8);
        assert!(
            start.elapsed() < limit,
            "before the deadline of slow bodies"
        );
    }
    let mut answer = Vec::new();
    slow[0].read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 503"), "told why");
}

#[tokio::test]
async fn the_memory_of_a_request_comes_back_however_it_ends() {
    let service = Service::with(Fake::babbling(), short_of_memory());
    let post = |path: &str| {
        let request = service.client.post(service.url(path));
        request.header("content-type", "application/json")
    };
    for _ in 0..5 {
        // Requests that end in various ways: complete, without a length, refused, broken off, and without the engine.
        let body = long_request(90 << 10);
        let answer = post("/v1/completions")
            .body(body.clone())
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        let pieces = body
            .as_bytes()
            .chunks(10_000)
            .map(|piece| Ok::<_, std::io::Error>(piece.to_vec()));
        let pieces: Vec<_> = pieces.collect();
        let stream = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
        let answer = post("/v1/completions").body(stream).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let answer = post("/v1/completions")
            .body("x".repeat(90 << 10))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 400);
        let mut socket = TcpStream::connect(service.address).await.unwrap();
        let head = "POST /v1/completions HTTP/1.1\r\ncontent-type: application/json\r\n";
        let head = format!("{head}content-length: {}\r\n\r\n{{", 90 << 10);
        socket.write_all(head.as_bytes()).await.unwrap();
        drop(socket);
        let text = json!({"prompt": "word ".repeat(500)}).to_string();
        assert_eq!(
            post("/tokenize").body(text).send().await.unwrap().status(),
            200
        );
    }
}

#[tokio::test]
async fn what_can_never_fit_the_memory_for_requests_is_413() {
    let service = Service::with(Fake::babbling(), short_of_memory());
    let bomb = format!(
        "{{\"prompt\": \"x\", \"tools\": [{}[]]}}",
        "[],".repeat(20_000)
    );
    let scores = json!({"prompt": vec![5; 3000], "echo": true, "logprobs": 20, "max_tokens": 1});
    for body in [bomb, scores.to_string()] {
        let request = service.client.post(service.url("/v1/completions"));
        let request = request.header("content-type", "application/json");
        let answer = request.body(body).send().await.unwrap();
        assert_eq!(answer.status(), 413);
        let error: Value = answer.json().await.unwrap();
        assert_eq!(error["error"]["code"], "request_too_large");
    }
}
