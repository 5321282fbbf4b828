//! A small hub on loopback that serves one repository and can misbehave.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use microgranite::sources::Settings;

use crate::fixture;

/// The commit that every revision points to at first.
pub const COMMIT: &str = "1111111111111111111111111111111111111111";

/// A fault of the hub.
#[derive(Clone, PartialEq)]
pub enum Fault {
    None,
    /// Answers everything with this status.
    Status(u16),
    /// Announces the full length of this file, sends half and closes the connection, this many times.
    HangsUp(&'static str, usize),
    /// Sends this file with its first byte changed.
    Damages(&'static str),
    /// Truncates this file in an otherwise valid response.
    Shortens(&'static str),
}

pub struct State {
    /// The commit of every revision.
    pub commits: BTreeMap<String, String>,
    pub files: BTreeMap<String, Vec<u8>>,
    fault: Fault,
    /// Path and `Authorization` of every request.
    requests: Vec<(String, Option<String>)>,
}

/// A hub with one repository, and an empty cache beside it.
pub struct Hub {
    endpoint: String,
    pub state: Arc<Mutex<State>>,
    pub cache: TempDir,
}

impl Hub {
    pub fn with(files: BTreeMap<String, Vec<u8>>) -> Self {
        let commits = [("main", COMMIT), ("v1", COMMIT)];
        let state = Arc::new(Mutex::new(State {
            commits: commits.map(|(a, b)| (a.to_owned(), b.to_owned())).into(),
            files,
            fault: Fault::None,
            requests: Vec::new(),
        }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client may close the connection.
                let _ = stream.and_then(|stream| answer(stream, &shared));
            }
        });
        let cache = tempfile::tempdir().unwrap();
        Self {
            endpoint,
            state,
            cache,
        }
    }

    /// The small Granite and some unneeded files.
    pub fn with_granite() -> Self {
        let mut files = BTreeMap::new();
        for name in [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "model.safetensors",
        ] {
            let bytes = std::fs::read(fixture("granite-3-tiny").join(name)).unwrap();
            files.insert(name.to_owned(), bytes);
        }
        for name in ["README.md", "pytorch_model.bin", "onnx/model.onnx"] {
            files.insert(name.to_owned(), b"not needed".to_vec());
        }
        Self::with(files)
    }

    pub fn settings(&self) -> Settings {
        let cache = self.cache.path().display().to_string();
        let variables = [
            ("HF_ENDPOINT", &self.endpoint),
            ("HF_HUB_CACHE", &cache),
            ("HF_HOME", &cache),
        ];
        let lookup = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| value.to_string())
        };
        Settings::from_variables(lookup, false)
    }

    pub fn set_fault(&self, fault: Fault) {
        self.state.lock().unwrap().fault = fault;
    }

    /// The paths requested since the last call.
    pub fn requests(&self) -> Vec<(String, Option<String>)> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    /// Every file in the cache's snapshots, by name.
    pub fn cached(&self) -> Vec<PathBuf> {
        let snapshots = self.cache.path().join("models--granite--tiny/snapshots");
        let commits = std::fs::read_dir(snapshots).into_iter().flatten().flatten();
        let files = commits.flat_map(|commit| std::fs::read_dir(commit.path()).unwrap());
        files.map(|file| file.unwrap().file_name().into()).collect()
    }
}

/// Answers one request and closes the connection.
fn answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap()?;
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let path = request.split(' ').nth(1).unwrap().to_owned();
    let mut state = state.lock().unwrap();
    state
        .requests
        .push((path.clone(), headers.get("authorization").cloned()));

    let mut send = |status: u16, headers: &str, announced: usize, body: &[u8]| {
        write!(
            stream,
            "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {announced}\r\n{headers}\r\n"
        )?;
        stream.write_all(body)
    };
    if let Fault::Status(status) = state.fault {
        return send(status, "", 0, b"");
    }
    if let Some(revision) = path.strip_prefix("/api/models/granite/tiny/revision/") {
        let Some(commit) = state.commits.get(revision) else {
            return send(404, "", 0, b"");
        };
        let siblings: Vec<_> = state
            .files
            .keys()
            .map(|name| serde_json::json!({"rfilename": name}))
            .collect();
        let body = serde_json::json!({"sha": commit, "siblings": siblings}).to_string();
        return send(200, "", body.len(), body.as_bytes());
    }
    let file = path
        .strip_prefix("/granite/tiny/resolve/")
        .and_then(|rest| rest.split_once('/'));
    let Some((commit, name)) = file else {
        return send(404, "", 0, b"");
    };
    let Some(bytes) = state.files.get(name).cloned() else {
        return send(404, "", 0, b"");
    };
    // `bytes=A-B` or `bytes=A-`
    let range = headers["range"].strip_prefix("bytes=").unwrap();
    let (start, end) = range.split_once('-').unwrap();
    let start: usize = start.parse().unwrap();
    let end = end.parse().map_or(bytes.len(), |last: usize| last + 1);
    let hash: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    // Large files are identified by their SHA-256, small ones by git's hash, which is not checked.
    let etag = if name.ends_with(".json") {
        hash[..40].to_owned()
    } else {
        hash
    };
    let about = format!(
        "x-repo-commit: {commit}\r\nETag: \"{etag}\"\r\nContent-Range: bytes {start}-{}/{}\r\n",
        end - 1,
        bytes.len()
    );
    let mut body = bytes[start..end].to_vec();
    let announced = body.len();
    // A request for the first byte only queries the size.
    let whole = end - start > 1;
    match state.fault.clone() {
        Fault::HangsUp(faulty, times) if faulty == name && whole && times > 0 => {
            state.fault = Fault::HangsUp(faulty, times - 1);
            body.truncate(announced / 2);
        }
        Fault::Damages(faulty) if faulty == name && whole => body[0] ^= 1,
        Fault::Shortens(faulty) if faulty == name && whole => {
            body.truncate(announced / 2);
            return send(206, &about, body.len(), &body);
        }
        _ => {}
    }
    send(206, &about, announced, &body)
}
