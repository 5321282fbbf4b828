//! Connections that are refused or cut off, seen from the socket: what no HTTP client would send.

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
    let _reset_after_the_answer = read.expect("the connection is closed");
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
            header_deadline: Duration::from_millis(300),
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
    let answer = raw(&service, b"").await;
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
