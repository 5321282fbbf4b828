//! A client that says exactly what it sends and when what comes back arrives. Each request has a connection of its own.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take before it counts as lost: on a machine whose cores are busy, a hundred times as long as usual.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Where completions are.
pub const COMPLETIONS: &str = "/v1/completions";

/// An answer, complete.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// The head, in lower case.
    pub head: String,
    pub body: Vec<u8>,
    /// Until its first byte.
    pub first: Duration,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.find_map(|(key, value)| (key == name).then(|| value.trim()))
    }
}

/// The bytes of a request.
pub fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes =
        format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}");
    if method != "GET" {
        bytes += &format!(
            "content-type: application/json\r\ncontent-length: {}\r\n",
            body.len()
        );
    }
    let mut bytes = (bytes + "\r\n").into_bytes();
    bytes.extend(body);
    bytes
}

pub fn post_request(path: &str, body: &Value) -> Vec<u8> {
    request("POST", path, "", body.to_string().as_bytes())
}

pub async fn get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    exchange(address, &request("GET", path, "", b"")).await
}

pub async fn post(address: SocketAddr, path: &str, body: &Value) -> io::Result<Answer> {
    exchange(address, &post_request(path, body)).await
}

/// The status of a `GET`, or `None` if nothing answers.
pub async fn status_of(address: SocketAddr, path: &str) -> Option<u16> {
    get(address, path).await.ok().map(|answer| answer.status)
}

/// Sends bytes and reads the answer until the connection is closed.
///
/// # Errors
/// If there is no connection, no answer, or only a part of one.
pub async fn exchange(address: SocketAddr, bytes: &[u8]) -> io::Result<Answer> {
    let began = Instant::now();
    let mut stream = Stream::open(address, bytes).await?;
    let first = began.elapsed();
    let mut body = Vec::new();
    while let Some(piece) = stream.piece().await? {
        body.extend(piece);
    }
    let (status, head) = (stream.status, std::mem::take(&mut stream.head));
    Ok(Answer {
        status,
        head,
        body,
        first,
    })
}

/// Sends bytes and returns all that comes back until the connection is closed or `limit` is over.
pub async fn raw(address: SocketAddr, bytes: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
    let mut socket = TcpStream::connect(address).await?;
    let mut answer = Vec::new();
    // The server may answer and close before everything is sent.
    let _not_all = socket.write_all(bytes).await;
    let read = socket.read_to_end(&mut answer);
    match timeout(limit, read).await {
        Ok(Err(problem)) if answer.is_empty() => Err(problem),
        _ => Ok(answer),
    }
}

/// An answer that is being read.
pub struct Stream {
    socket: TcpStream,
    buffer: Vec<u8>,
    pub status: u16,
    pub head: String,
    framing: Framing,
}

/// How much of the body is left.
enum Framing {
    Length(usize),
    Chunks,
    UntilClosed,
    Ended,
}

impl Stream {
    /// Sends `bytes` and reads the head of the answer.
    pub async fn open(address: SocketAddr, bytes: &[u8]) -> io::Result<Self> {
        let mut socket = timeout(PATIENCE, TcpStream::connect(address))
            .await
            .map_err(io::Error::other)??;
        socket.set_nodelay(true)?;
        // A refusal may come before everything is sent.
        let sent = socket.write_all(bytes).await;
        let mut stream = Self {
            socket,
            buffer: Vec::new(),
            status: 0,
            head: String::new(),
            framing: Framing::UntilClosed,
        };
        match stream.read_head().await {
            Err(_) if sent.is_err() => return Err(sent.expect_err("it failed")),
            other => other?,
        }
        Ok(stream)
    }

    async fn read_head(&mut self) -> io::Result<()> {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at;
            }
            self.fill().await?;
        };
        let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
        self.head = String::from_utf8_lossy(&head).to_lowercase();
        let status = self
            .head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        self.status = status.ok_or_else(|| io::Error::other("no status"))?;
        let header = |name: &str| {
            let lines = self.head.lines();
            lines
                .filter_map(|line| line.strip_prefix(name))
                .next()
                .map(str::trim)
        };
        self.framing = match (header("transfer-encoding:"), header("content-length:")) {
            (Some("chunked"), _) => Framing::Chunks,
            (_, Some(length)) => Framing::Length(length.parse().map_err(io::Error::other)?),
            _ => Framing::UntilClosed,
        };
        Ok(())
    }

    /// Reads at least one more byte.
    async fn fill(&mut self) -> io::Result<()> {
        let mut bytes = [0; 8 << 10];
        let read = timeout(PATIENCE, self.socket.read(&mut bytes))
            .await
            .map_err(io::Error::other)??;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.extend_from_slice(&bytes[..read]);
        Ok(())
    }

    /// The next piece of the body, or `None` at its end.
    ///
    /// # Errors
    /// If the connection ends before the body does.
    pub async fn piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.framing {
            Framing::Ended | Framing::Length(0) => Ok(None),
            Framing::Length(left) => {
                if self.buffer.is_empty() {
                    self.fill().await?;
                }
                let piece: Vec<u8> = self.buffer.drain(..left.min(self.buffer.len())).collect();
                self.framing = Framing::Length(left - piece.len());
                Ok(Some(piece))
            }
            Framing::UntilClosed => {
                if self.buffer.is_empty() && self.fill().await.is_err() {
                    self.framing = Framing::Ended;
                    return Ok(None);
                }
                Ok(Some(std::mem::take(&mut self.buffer)))
            }
            Framing::Chunks => {
                let line = loop {
                    if let Some(at) = find(&self.buffer, b"\r\n") {
                        break at;
                    }
                    self.fill().await?;
                };
                let length = String::from_utf8_lossy(&self.buffer[..line]).into_owned();
                let length = usize::from_str_radix(length.trim(), 16).map_err(io::Error::other)?;
                while self.buffer.len() < line + 2 + length + 2 {
                    self.fill().await?;
                }
                let chunk: Vec<u8> = self.buffer.drain(..line + 2 + length + 2).collect();
                if length == 0 {
                    self.framing = Framing::Ended;
                    return Ok(None);
                }
                Ok(Some(chunk[line + 2..line + 2 + length].to_vec()))
            }
        }
    }

    /// Reads the whole body as server-sent events.
    pub async fn events(mut self) -> Events {
        let mut events = Events::default();
        let mut text = Vec::new();
        loop {
            match self.piece().await {
                Ok(Some(piece)) => text.extend(piece),
                Ok(None) => break events.is_whole = true,
                Err(problem) => break events.problem = Some(problem.to_string()),
            }
            while let Some(end) = find(&text, b"\n\n") {
                let event: Vec<u8> = text.drain(..end + 2).collect();
                events.add(&event);
            }
        }
        events
    }
}

/// The events of a stream.
#[derive(Debug, Default)]
pub struct Events {
    /// When each event with text arrived.
    pub arrivals: Vec<Instant>,
    pub text: String,
    /// `usage.completion_tokens`.
    pub tokens: Option<u64>,
    /// The code of an error in the stream.
    pub error: Option<String>,
    /// Whether `[DONE]` came.
    pub is_done: bool,
    /// Whether the body ended as HTTP says it must.
    pub is_whole: bool,
    /// What broke the connection.
    pub problem: Option<String>,
}

impl Events {
    fn add(&mut self, event: &[u8]) {
        let Some(data) = event.strip_prefix(b"data: ") else {
            return;
        };
        if data.starts_with(b"[DONE]") {
            self.is_done = true;
            return;
        }
        let data: Value = serde_json::from_slice(data).unwrap_or(Value::Null);
        if let Some(code) = data["error"]["code"].as_str() {
            self.error = Some(code.to_owned());
        }
        self.tokens = data["usage"]["completion_tokens"].as_u64().or(self.tokens);
        if let Some(text) = data["choices"][0]["text"].as_str() {
            self.arrivals.push(Instant::now());
            self.text += text;
        }
    }

    /// Whether the answer came to its end, without an error.
    pub fn is_complete(&self) -> bool {
        self.is_done && self.is_whole && self.error.is_none()
    }

    /// The times between texts.
    pub fn gaps(&self) -> impl Iterator<Item = Duration> + '_ {
        self.arrivals.windows(2).map(|two| two[1] - two[0])
    }
}

pub fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}
