//! Tests of HTTPS with certificates that are made here: both versions, renewal, clients that stall, and what is refused.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use microgranite::http::server;
use microgranite::http::server::tls::{Files, Tls};
use microgranite::telemetry::Metrics;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsConnector, rustls};

use crate::fake::Fake;
use crate::harness::{Options, Service};
use crate::process::{microgranite, running_with, tiny};

/// A certificate for `localhost` with its key, in PEM form.
struct Pair {
    certificate: String,
    key: String,
}

impl Pair {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        Self {
            certificate: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
        }
    }

    fn write(&self, folder: &Path) -> Files {
        let files = Files {
            certificate: folder.join("cert.pem"),
            key: folder.join("key.pem"),
            client_ca: None,
        };
        std::fs::write(&files.certificate, &self.certificate).unwrap();
        std::fs::write(&files.key, &self.key).unwrap();
        files
    }
}

/// A service with HTTPS, and what belongs to it.
struct Secure {
    service: Service,
    tls: Arc<Tls>,
    metrics: Arc<Metrics>,
    folder: TempDir,
}

fn secure(pair: &Pair, model: Fake, server: server::Settings) -> Secure {
    let folder = tempfile::tempdir().unwrap();
    let files = pair.write(folder.path());
    with_files(files, folder, model, server)
}

fn with_files(files: Files, folder: TempDir, model: Fake, server: server::Settings) -> Secure {
    let metrics = Arc::new(Metrics::new());
    let tls = Arc::new(Tls::read(files, Arc::clone(&metrics)).unwrap());
    let server = server::Settings {
        tls: Some(Arc::clone(&tls)),
        ..server
    };
    let options = Options {
        server,
        ..Options::default()
    };
    Secure {
        service: Service::with(model, options),
        tls,
        metrics,
        folder,
    }
}

impl Secure {
    fn failures(&self, reason: &str) -> u64 {
        let failures = &self.metrics.tls_handshake_failures_total;
        failures.with_label_values(&[reason]).get()
    }

    /// Waits until so many handshakes have failed for this reason: a client learns of it a moment before it is counted.
    async fn has_failed(&self, reason: &str, times: u64) {
        let start = Instant::now();
        while self.failures(reason) != times {
            assert!(start.elapsed() < Duration::from_secs(30), "no {reason}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Connects as a client that trusts `roots`.
    async fn connect(&self, client: Client<'_>) -> std::io::Result<TlsStream<TcpStream>> {
        let socket = TcpStream::connect(self.service.address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(client.config())
            .connect(name, socket)
            .await
    }

    /// Sends a request on a connection of its own, and returns the response.
    async fn exchange(&self, client: Client<'_>, request: &str) -> std::io::Result<String> {
        let mut stream = self.connect(client).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}

/// What a client trusts and proves.
#[derive(Clone, Copy)]
struct Client<'a> {
    roots: &'a [&'a str],
    identity: Option<&'a Pair>,
    versions: &'a [&'static rustls::SupportedProtocolVersion],
    protocols: &'a [&'a str],
}

impl<'a> Client<'a> {
    fn trusting(roots: &'a [&'a str]) -> Self {
        Self {
            roots,
            identity: None,
            versions: rustls::ALL_VERSIONS,
            protocols: &[],
        }
    }

    fn config(self) -> Arc<rustls::ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        for pem in self.roots {
            let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
            roots.add(certificate).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(self.versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match self.identity {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain =
                    vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let protocols = self.protocols.iter();
        config.alpn_protocols = protocols.map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

const LIVE: &str = "GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

fn completion(body: &Value) -> String {
    let body = body.to_string();
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn both_versions_of_tls_carry_http_1_1() {
    let pair = Pair::new();
    let secure = secure(&pair, Fake::babbling(), server::Settings::default());
    let roots = [&*pair.certificate];
    let trusting = Client::trusting(&roots);
    for versions in [&[&rustls::version::TLS12], &[&rustls::version::TLS13]] {
        let client = Client {
            versions,
            protocols: &["h2", "http/1.1"],
            ..trusting
        };
        let stream = secure.connect(client).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        let answer = secure.exchange(client, LIVE).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\"alive\"}"), "{answer}");
    }
    // A response of many records: the prompt's ids and the scores of each token.
    let body = json!({"prompt": vec![3; 2000], "max_tokens": 500, "logprobs": 5, "echo": true});
    let answer = secure.exchange(trusting, &completion(&body)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(body.len() > 100_000, "{}", body.len());
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["usage"]["completion_tokens"], 500);

    let only_http_2 = Client {
        protocols: &["h2"],
        ..trusting
    };
    assert!(secure.exchange(only_http_2, LIVE).await.is_err());
    let other = Pair::new();
    let distrusting = [&*other.certificate];
    let refused = secure.exchange(Client::trusting(&distrusting), LIVE).await;
    assert!(refused.is_err());
    secure.has_failed("refused_by_client", 1).await;
    let end = secure
        .metrics
        .tls_certificate_expiry_timestamp_seconds
        .with_label_values(&["server"]);
    assert!(end.get() > 1_800_000_000, "{}", end.get());
}

#[tokio::test]
async fn a_certificate_is_renewed_without_a_lost_request_and_a_broken_one_changes_nothing() {
    let (old, new) = (Pair::new(), Pair::new());
    let model = Fake::babbling().with_step_time(Duration::from_millis(2));
    let secure = secure(&old, model, server::Settings::default());
    let both = [&*old.certificate, &*new.certificate];
    let (any, only_old, only_new) = (
        Client::trusting(&both),
        Client::trusting(&both[..1]),
        Client::trusting(&both[1..]),
    );
    let long = completion(&json!({"prompt": "x", "max_tokens": 400, "stream": true}));
    let short = completion(&json!({"prompt": "y", "max_tokens": 3}));
    let renewal = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        for broken in [
            "",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            std::fs::write(secure.folder.path().join("cert.pem"), broken).unwrap();
            secure.tls.reload(false);
            assert!(secure.exchange(only_old, LIVE).await.is_ok());
        }
        // The new certificate comes before its key.
        std::fs::write(secure.folder.path().join("cert.pem"), &new.certificate).unwrap();
        secure.tls.reload(false);
        secure.tls.reload(false);
        assert!(secure.exchange(only_old, LIVE).await.is_ok());
        assert_eq!(secure.metrics.tls_reload_failures_total.get(), 3);
        std::fs::write(secure.folder.path().join("key.pem"), &new.key).unwrap();
        secure.tls.reload(false);
        assert!(secure.exchange(only_new, LIVE).await.is_ok());
        assert!(secure.exchange(only_old, LIVE).await.is_err());
    };
    let requests = async {
        for _ in 0..20 {
            let answer = secure.exchange(any, &short).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    };
    let (stream, (), ()) = tokio::join!(secure.exchange(any, &long), renewal, requests);
    let stream = stream.unwrap();
    assert!(
        stream.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"),
        "{stream}"
    );
    assert_eq!(secure.metrics.tls_reload_failures_total.get(), 3);
}

#[tokio::test]
async fn plain_http_is_told_what_the_port_speaks_and_anything_else_is_cut_off() {
    let pair = Pair::new();
    let secure = secure(&pair, Fake::babbling(), server::Settings::default());
    let mut socket = TcpStream::connect(secure.service.address).await.unwrap();
    socket.write_all(LIVE.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains("\"plain_http\"") && answer.contains("https://"),
        "{answer}"
    );
    secure.has_failed("plain_http", 1).await;

    for garbage in [
        &b"\x00\x01\x02"[..],
        b"\x16\x03\x01\x00\x05hello",
        &[22; 70_000],
    ] {
        let before = secure.failures("protocol");
        let mut socket = TcpStream::connect(secure.service.address).await.unwrap();
        let _cut_off = socket.write_all(garbage).await;
        let mut answer = Vec::new();
        let _reset = socket.read_to_end(&mut answer).await;
        assert!(answer.len() < 16, "at most an alert: {answer:?}");
        secure.has_failed("protocol", before + 1).await;
    }
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_cut_off_at_its_deadline() {
    let pair = Pair::new();
    let settings = server::Settings {
        head_deadline: Duration::from_millis(400),
        ..server::Settings::default()
    };
    let secure = secure(&pair, Fake::babbling(), settings);
    for sent in [&b""[..], b"\x16\x03\x01\x01\x00\x01"] {
        let before = secure.failures("timeout");
        let start = Instant::now();
        let mut socket = TcpStream::connect(secure.service.address).await.unwrap();
        socket.write_all(sent).await.unwrap();
        let limit = Duration::from_secs(30);
        let mut answer = Vec::new();
        let end = tokio::time::timeout(limit, socket.read_to_end(&mut answer)).await;
        let _reset = end.expect("the connection is closed");
        assert!(start.elapsed() >= Duration::from_millis(350), "{sent:?}");
        assert!(answer.is_empty());
        secure.has_failed("timeout", before + 1).await;
    }
}

#[tokio::test]
async fn handshakes_that_do_not_end_keep_nobody_out() {
    let pair = Pair::new();
    let settings = server::Settings {
        max_connections: 3,
        head_deadline: Duration::from_secs(600),
        ..server::Settings::default()
    };
    let mut secure = secure(&pair, Fake::babbling(), settings);
    let roots = [&*pair.certificate];
    let client = Client::trusting(&roots);
    // An open connection keeps its place.
    let mut open = secure.connect(client).await.unwrap();
    let get = LIVE.replace("connection: close\r\n", "");
    open.write_all(get.as_bytes()).await.unwrap();
    assert!(open.read(&mut [0; 1024]).await.unwrap() > 0);
    let mut stalled = Vec::new();
    for _ in 0..2 {
        let mut socket = TcpStream::connect(secure.service.address).await.unwrap();
        socket.write_all(b"\x16\x03\x01\x01\x00").await.unwrap();
        stalled.push(socket);
    }
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let answer = secure.exchange(client, LIVE).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(secure.failures("displaced"), 1);
    open.write_all(get.as_bytes()).await.unwrap();
    assert!(
        open.read(&mut [0; 1024]).await.unwrap() > 0,
        "it was not displaced"
    );
    // The server does not wait for a handshake when it stops.
    let start = Instant::now();
    let drained = secure.service.drain(Duration::from_secs(60));
    assert!(drained.await.unwrap());
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    drop(stalled);
}

#[tokio::test]
async fn clients_prove_who_they_are_if_an_authority_is_given() {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
    let known = Pair {
        certificate: params.signed_by(&key, &authority).unwrap().pem(),
        key: key.serialize_pem(),
    };
    let (server, stranger) = (Pair::new(), Pair::new());
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let files = Files {
        client_ca: Some(ca),
        ..server.write(folder.path())
    };
    let secure = with_files(files, folder, Fake::babbling(), server::Settings::default());
    let roots = [&*server.certificate];
    for (identity, is_served) in [
        (Some(&known), true),
        (Some(&stranger), false),
        (None, false),
    ] {
        for versions in [&[&rustls::version::TLS12], &[&rustls::version::TLS13]] {
            let before = secure.failures("client_certificate");
            let client = Client {
                identity,
                versions,
                ..Client::trusting(&roots)
            };
            let answer = secure.exchange(client, LIVE).await;
            let served = answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"));
            assert_eq!(served, is_served);
            let failed = before + u64::from(!is_served);
            secure.has_failed("client_certificate", failed).await;
        }
    }
}

#[test]
fn files_that_cannot_be_used_are_one_line_before_a_port_is_bound() {
    let (one, other) = (Pair::new(), Pair::new());
    let folder = tempfile::tempdir().unwrap();
    one.write(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("other.pem"), &other.key).unwrap();
    std::fs::write(path("text"), "no certificate").unwrap();
    let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(path("bad.pem"), bad).unwrap();
    let encrypted = other.key.replace("PRIVATE", "ENCRYPTED PRIVATE");
    std::fs::write(path("encrypted.pem"), encrypted).unwrap();
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    for (flags, code, words) in [
        (vec![("cert", &*cert)], 64, "--tls-key"),
        (vec![("key", &*key)], 64, "--tls-cert"),
        (vec![("client-ca", &*cert)], 64, "--tls-cert"),
        (vec![("cert", "/nowhere"), ("key", &key)], 66, "/nowhere"),
        (vec![("cert", &cert), ("key", "/nowhere")], 66, "/nowhere"),
        (vec![("cert", &cert), ("key", "/")], 66, "/: "),
        (
            vec![("cert", &path("text")), ("key", &key)],
            78,
            "no certificate",
        ),
        (
            vec![("cert", &path("bad.pem")), ("key", &key)],
            78,
            "bad.pem",
        ),
        (vec![("cert", &cert), ("key", &cert)], 78, "no private key"),
        (
            vec![("cert", &cert), ("key", &path("encrypted.pem"))],
            78,
            "password",
        ),
        (
            vec![("cert", &cert), ("key", &path("other.pem"))],
            78,
            "is not the key",
        ),
        (vec![("cert", &cert), ("key", "/dev/zero")], 78, "larger"),
        (
            vec![("cert", &cert), ("key", &key), ("client-ca", &path("text"))],
            78,
            "--tls-client-ca",
        ),
    ] {
        let mut command = microgranite(&["serve", &tiny(), "--listen", "127.0.0.1:0"]);
        for (flag, file) in &flags {
            command.arg(format!("--tls-{flag}={file}"));
        }
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{flags:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{flags:?}: {text}");
        assert!(text.contains(words), "{flags:?}: {text}");
    }
}

/// A client that trusts one certificate.
fn agent(pair: &Pair) -> ureq::Agent {
    let root = ureq::tls::Certificate::from_pem(pair.certificate.as_bytes()).unwrap();
    let tls = ureq::tls::TlsConfig::builder()
        .root_certs(ureq::tls::RootCerts::new_with_certs(&[root]))
        .build();
    let config = ureq::Agent::config_builder().tls_config(tls);
    config.build().into()
}

#[test]
fn the_program_serves_https_and_takes_a_new_certificate_by_itself() {
    let (old, new) = (Pair::new(), Pair::new());
    let folder = tempfile::tempdir().unwrap();
    old.write(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let flags = [
        "--tls-cert",
        &path("cert.pem"),
        "--tls-key",
        &path("key.pem"),
    ];
    let (_process, url) = running_with(&tiny(), &flags);
    let url = url.strip_prefix("https://127.0.0.1").expect("it says so");
    let url = format!("https://localhost{url}");
    let complete = |pair: &Pair| {
        let body = json!({"prompt": "x", "max_tokens": 4}).to_string();
        let request = agent(pair).post(format!("{url}/v1/completions"));
        let request = request.header("content-type", "application/json");
        request.send(body).map(|response| response.status())
    };
    assert_eq!(complete(&old).unwrap(), 200);
    assert!(complete(&new).is_err());
    new.write(folder.path());
    let start = Instant::now();
    while complete(&new).is_err() {
        assert!(start.elapsed() < Duration::from_secs(60), "it is not read");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(complete(&old).is_err());
}
