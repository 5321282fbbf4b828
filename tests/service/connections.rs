//! Tests of connections that are refused or cut off, with raw sockets, which can send what no HTTP client would send.

use std::time::{Duration, Instant};

use microgranite::http::server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fake::Fake;
use crate::harness::{MODEL, Options, Service};

/// Sends raw bytes and returns all that comes back before the connection closes.
async fn raw(service: &Service, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(service.address).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = socket.read_to_end(&mut answer);
    let limit = Duration::from_secs(20);
    let read = tokio::time::timeout(limit, read).await;
    let read = read.expect("the connection is closed");
    read.expect("closed in good order, not reset");
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn too_many_or_too_long_headers_are_431() {
    let service = Service::start(Fake::babbling());
    let get = |headers: &str| format!("GET /readyz HTTP/1.1\r\nconnection: close\r\n{headers}\r\n");
    let many = |count| {
        (0..count)
            .map(|n| format!("x-{n}: y\r\n"))
            .collect::<String>()
    };
    let long = |bytes| format!("x: {}\r\n", "y".repeat(bytes));
    for (headers, status) in [
        (many(60), "HTTP/1.1 200"),
        (many(70), "HTTP/1.1 431"),
        (long(30_000), "HTTP/1.1 200"),
        (long(40_000), "HTTP/1.1 431"),
    ] {
        let answer = raw(&service, get(&headers).as_bytes()).await;
        assert!(answer.starts_with(status), "{status}: {answer}");
    }
}

#[tokio::test]
async fn how_long_headers_may_be_can_be_set() {
    for (header_bytes, long, status) in [(1024, 2000, 431), (200_000, 150_000, 200)] {
        let options = Options {
            server: server::Settings {
                header_bytes,
                ..server::Settings::default()
            },
            ..Options::default()
        };
        let service = Service::with(Fake::babbling(), options);
        let request = service.client.get(service.url("/readyz"));
        let response = request.header("x-long", "y".repeat(long)).send().await;
        assert_eq!(response.unwrap().status(), status, "{header_bytes}");
    }
}

#[tokio::test]
async fn headers_that_trickle_in_are_cut_off_at_the_deadline() {
    let options = Options {
        server: server::Settings {
            head_deadline: Duration::from_millis(300),
            ..server::Settings::default()
        },
        ..Options::default()
    };
    let service = Service::with(Fake::babbling(), options);
    let start = Instant::now();
    let mut socket = TcpStream::connect(service.address).await.unwrap();
    let trickle = async {
        for byte in b"GET /readyz HTTP/1.1\r\nx-slow: ".iter().cycle() {
            if socket.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let limit = Duration::from_secs(3);
    tokio::time::timeout(limit, trickle)
        .await
        .expect("the connection is closed");
    assert!(start.elapsed() >= Duration::from_millis(250));
}

#[tokio::test]
async fn a_body_that_does_not_come_is_408_and_one_that_ends_early_is_noticed() {
    let service = Service::start(Fake::babbling());
    let head = "POST /v1/completions HTTP/1.1\r\ncontent-type: application/json\r\n";
    let start = Instant::now();
    let answer = raw(
        &service,
        format!("{head}content-length: 99\r\n\r\n{{\"pro").as_bytes(),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("\"body_timeout\""), "{answer}");
    assert!(
        (9..13).contains(&start.elapsed().as_secs()),
        "{:?}",
        start.elapsed()
    );
    let answer = raw(
        &service,
        format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n").as_bytes(),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn a_body_in_bad_chunks_is_told_from_one_that_ends_early() {
    let service = Service::start(Fake::babbling());
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
        transfer-encoding: chunked\r\n\r\n";
    for (chunks, code) in [
        ("zz\r\n{}\r\n0\r\n\r\n", "body_malformed"),
        ("2\r\n{}}\r\n0\r\n\r\n", "body_malformed"),
        ("-1\r\n{}\r\n0\r\n\r\n", "body_malformed"),
        ("ffffffffffffffffff\r\n{}\r\n", "body_malformed"),
    ] {
        let answer = raw(&service, format!("{head}{chunks}").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{chunks:?}: {answer}");
        assert!(answer.contains(code), "{chunks:?}: {answer}");
    }
    let mut socket = TcpStream::connect(service.address).await.unwrap();
    let cut = format!("{head}a\r\n{{");
    socket.write_all(cut.as_bytes()).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("body_incomplete"), "{answer}");
}

#[tokio::test]
async fn a_connection_too_many_is_told_so() {
    let options = Options {
        server: server::Settings {
            max_connections: 2,
            ..server::Settings::default()
        },
        ..Options::default()
    };
    let service = Service::with(Fake::babbling(), options);
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut socket = TcpStream::connect(service.address).await.unwrap();
        socket
            .write_all(b"GET /livez HTTP/1.1\r\n\r\n")
            .await
            .unwrap();
        assert!(socket.read(&mut [0; 256]).await.unwrap() > 0);
        held.push(socket);
    }
    // A connection too many is refused whether or not its client has sent anything.
    raw(&service, b"").await;
    let answer = raw(&service, b"GET /livez HTTP/1.1\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("too_many_connections"),
        "{answer}"
    );
    drop(held);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let url = format!("/v1/models/{MODEL}");
    assert_eq!(
        service.get(&url).await.status(),
        200,
        "their places are free again"
    );
}

/// Sends `request` on a connection and returns the head of the answer.
async fn head_of(socket: &mut TcpStream, request: &str) -> String {
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut bytes = [0; 1024];
        let count = socket.read(&mut bytes).await.unwrap();
        assert!(count > 0, "the connection is open");
        answer.extend_from_slice(&bytes[..count]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn an_idle_connection_is_kept_longer_than_a_head_may_take_and_clients_are_told() {
    let options = Options {
        server: server::Settings {
            head_deadline: Duration::from_millis(200),
            keep_alive: Duration::from_secs(75),
            ..server::Settings::default()
        },
        ..Options::default()
    };
    let service = Service::with(Fake::babbling(), options);
    let mut socket = TcpStream::connect(service.address).await.unwrap();
    for _ in 0..3 {
        let head = head_of(&mut socket, "GET /livez HTTP/1.1\r\n\r\n").await;
        assert!(head.contains("keep-alive: timeout=75\r\n"), "{head}");
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    for request in [
        "GET /livez HTTP/1.1\r\nconnection: close\r\n\r\n",
        "GET /livez HTTP/1.0\r\n\r\n",
    ] {
        let answer = raw(&service, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1."), "{answer}");
        assert!(!answer.contains("keep-alive:"), "{answer}");
    }
}

#[tokio::test]
async fn idle_connections_end_after_their_time_and_at_once_when_the_server_stops() {
    let options = |keep_alive| Options {
        server: server::Settings {
            keep_alive,
            ..server::Settings::default()
        },
        ..Options::default()
    };
    let service = Service::with(Fake::babbling(), options(Duration::ZERO));
    let mut socket = TcpStream::connect(service.address).await.unwrap();
    head_of(&mut socket, "GET /livez HTTP/1.1\r\n\r\n").await;
    let limit = Duration::from_secs(8);
    let mut nothing = Vec::new();
    let end = tokio::time::timeout(limit, socket.read_to_end(&mut nothing));
    end.await.expect("its time is over").unwrap();

    let mut service = Service::with(Fake::babbling(), options(Duration::from_secs(75)));
    let mut socket = TcpStream::connect(service.address).await.unwrap();
    head_of(&mut socket, "GET /livez HTTP/1.1\r\n\r\n").await;
    let start = Instant::now();
    let drained = service.drain(Duration::from_secs(20));
    assert!(drained.await.unwrap());
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "nobody waited for it"
    );
}

#[tokio::test]
async fn refusals_arrive_before_a_connection_with_unread_input_is_closed() {
    let service = Service::start(Fake::babbling());
    let post = "POST /v1/completions HTTP/1.1\r\ncontent-type: application/json\r\n";
    let long_uri = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    let long_header = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    let body = " ".repeat(12 << 20);
    let long_body = format!("{post}content-length: {}\r\n\r\n{body}", body.len());
    // This request is refused before its body is read.
    let other_type = long_body.replace("application/json", "text/plain");
    let nowhere = long_body.replace("/v1/completions", "/nowhere");
    for (request, status) in [
        (long_uri, 431),
        (long_header, 431),
        (long_body, 413),
        (other_type, 415),
        (nowhere, 404),
    ] {
        let answer = raw(&service, request.as_bytes()).await;
        let expected = format!("HTTP/1.1 {status}");
        assert!(answer.starts_with(&expected), "{status}: {answer}");
    }
}

#[tokio::test]
async fn a_body_that_follows_its_refusal_is_read_so_that_the_refusal_arrives() {
    let service = Service::start(Fake::babbling());
    for (path, status) in [("/v1/completions", 413), ("/nowhere", 404)] {
        let mut socket = TcpStream::connect(service.address).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 12000000\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        for _ in 0..20 {
            socket.write_all(&[b' '; 64 << 10]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut answer = [0; 12];
        socket.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, format!("HTTP/1.1 {status}").as_bytes());
    }
}

#[tokio::test]
async fn a_client_that_closes_its_sending_side_gets_its_answer() {
    let model = Fake::babbling().with_step_time(Duration::from_millis(20));
    let options = Options {
        server: server::Settings {
            // Long enough for the first token also on a busy machine.
            half_closed: Duration::from_millis(500),
            ..server::Settings::default()
        },
        ..Options::default()
    };
    let service = Service::with(model, options);
    // The answer takes longer than the grace for half-closed clients that receive nothing.
    let body = r#"{"prompt": "x", "max_tokens": 60, "stream": true}"#;
    let stream = format!(
        "POST /v1/completions HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    for (request, end) in [
        ("GET /livez HTTP/1.1\r\n\r\n", "\"alive\"}"),
        (&*stream, "data: [DONE]\n\n\r\n0\r\n\r\n"),
    ] {
        let mut socket = TcpStream::connect(service.address).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with(end), "{answer}");
    }
}

/// On the loopback interface segments are larger than the send buffer by themselves, and a receiver confirms a single one
/// only after a while.
#[tokio::test]
async fn the_send_buffer_holds_several_segments() {
    let service = Service::start(Fake::babbling());
    // The port is open before the server has begun; once it answers, it has.
    raw(
        &service,
        b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    )
    .await;
    let socket = TcpStream::connect(service.address).await.unwrap();
    let segment = socket2::SockRef::from(&socket).tcp_mss().unwrap();
    assert!(segment <= 8 << 10, "{segment} bytes");
}
