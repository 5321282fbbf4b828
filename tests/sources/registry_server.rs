//! A small registry of container images on loopback, which can misbehave.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use microgranite::sources::Settings;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// The token that the registry gives and asks for.
const TOKEN: &str = "anonymous.token";

/// A fault of the registry.
#[derive(Clone, Copy, PartialEq)]
pub enum Fault {
    None,
    /// Answers everything with this status.
    Status(u16),
    /// Sends half of every blob and closes the connection, this many times.
    HangsUp(usize),
    /// Sends blobs with their last byte changed.
    Damages,
    /// Sends more bytes than a blob has.
    Lengthens,
    /// Ignores which part of a blob is asked for, after one broken download.
    IgnoresRanges(usize),
    /// Names another address than its own for tokens.
    AsksElsewhere,
}

#[derive(Default)]
pub struct State {
    /// Blobs by their hash.
    pub blobs: BTreeMap<String, Vec<u8>>,
    /// Manifests by tag or digest.
    pub manifests: BTreeMap<String, Vec<u8>>,
    pub fault: Option<Fault>,
    /// Whether blobs are sent from another path, to which the client is redirected.
    pub redirects: bool,
    /// Whether a token is asked for.
    pub wants_token: bool,
    /// The path, the range and the authorization of every request.
    pub requests: Vec<(String, Option<String>, Option<String>)>,
}

/// A registry with the repository `library/tiny`, and an empty cache beside it.
pub struct Registry {
    pub address: String,
    pub state: Arc<Mutex<State>>,
    pub cache: TempDir,
}

pub fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Registry {
    pub fn new() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (shared, own) = (Arc::clone(&state), address.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client may close the connection.
                let _ = stream.and_then(|stream| answer(stream, &shared, &own));
            }
        });
        Self {
            address,
            state,
            cache: tempfile::tempdir().unwrap(),
        }
    }

    /// Adds an image with these layers: media type, file name if it has one, and content.
    pub fn push(&self, tag: &str, layers: &[(&str, Option<&str>, &[u8])]) -> String {
        let layers = layers.iter().map(|(kind, title, bytes)| {
            let mut layer = self.layer(kind, bytes);
            if let Some(title) = title {
                layer["annotations"] = json!({"org.opencontainers.image.title": title});
            }
            layer
        });
        let layers: Vec<Value> = layers.collect();
        self.push_manifest(tag, &json!({"schemaVersion": 2, "layers": layers}))
    }

    /// Adds a blob and returns the layer that describes it.
    pub fn layer(&self, kind: &str, bytes: &[u8]) -> Value {
        let hash = sha256(bytes);
        let layer =
            json!({"mediaType": kind, "digest": format!("sha256:{hash}"), "size": bytes.len()});
        self.state
            .lock()
            .unwrap()
            .blobs
            .insert(hash, bytes.to_vec());
        layer
    }

    /// Adds a manifest under a tag and its digest, and returns its hash.
    pub fn push_manifest(&self, tag: &str, manifest: &Value) -> String {
        let bytes = manifest.to_string().into_bytes();
        let hash = sha256(&bytes);
        let manifests = &mut self.state.lock().unwrap().manifests;
        manifests.insert(tag.to_owned(), bytes.clone());
        manifests.insert(format!("sha256:{hash}"), bytes);
        hash
    }

    pub fn settings(&self) -> Settings {
        let cache = self.cache.path().display().to_string();
        let endpoint = format!("http://{}", self.address);
        let lookup = |name: &str| match name {
            "OLLAMA_REGISTRY" => Some(endpoint.clone()),
            "XDG_CACHE_HOME" => Some(cache.clone()),
            _ => None,
        };
        Settings::from_variables(lookup, false)
    }

    pub fn set_fault(&self, fault: Fault) {
        self.state.lock().unwrap().fault = Some(fault);
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<(String, Option<String>, Option<String>)> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    /// All files in the cache.
    pub fn cached(&self) -> Vec<String> {
        let mut files = Vec::new();
        let mut folders = vec![self.cache.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let path = path.strip_prefix(self.cache.path()).unwrap();
                    files.push(path.display().to_string());
                }
            }
        }
        files
    }
}

/// Answers one request and closes the connection.
fn answer(mut stream: TcpStream, state: &Mutex<State>, own: &str) -> std::io::Result<()> {
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
    let state = &mut *state.lock().unwrap();
    let (range, authorization) = (headers.get("range"), headers.get("authorization"));
    let request = (path.clone(), range.cloned(), authorization.cloned());
    state.requests.push(request);
    let fault = state.fault.unwrap_or(Fault::None);
    let mut send = |status: u16, headers: &str, announced: usize, body: &[u8]| {
        let close = "Connection: close\r\nContent-Length";
        write!(
            stream,
            "HTTP/1.1 {status} X\r\n{close}: {announced}\r\n{headers}\r\n"
        )?;
        stream.write_all(body)
    };
    if let Fault::Status(status) = fault {
        return send(status, "", 0, b"");
    }
    if path.starts_with("/token?") {
        let body = json!({"access_token": TOKEN}).to_string();
        return send(200, "", body.len(), body.as_bytes());
    }
    if let Some(hash) = path.strip_prefix("/elsewhere/") {
        let blob = state.blobs[hash].clone();
        return send(200, "", blob.len(), &blob);
    }
    let bearer = format!("Bearer {TOKEN}");
    if state.wants_token && authorization != Some(&bearer) {
        let realm = match fault {
            Fault::AsksElsewhere => "ftp://tokens.example".to_owned(),
            _ => format!("http://{own}/token"),
        };
        let challenge = format!("Www-Authenticate: Bearer realm=\"{realm}\",service=\"tiny\"\r\n");
        return send(401, &challenge, 0, b"");
    }
    let Some(path) = path.strip_prefix("/v2/library/tiny/") else {
        return send(404, "", 0, b"");
    };
    if let Some(manifest) = path
        .strip_prefix("manifests/")
        .and_then(|tag| state.manifests.get(tag))
    {
        return send(200, "", manifest.len(), manifest);
    }
    let hash = path.strip_prefix("blobs/sha256:").unwrap_or_default();
    let Some(blob) = state.blobs.get(hash) else {
        return send(404, "", 0, b"");
    };
    if state.redirects {
        let location = format!("Location: http://{own}/elsewhere/{hash}\r\n");
        return send(307, &location, 0, b"");
    }
    let start = range.and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    });
    let start: usize = start
        .filter(|_| !matches!(fault, Fault::IgnoresRanges(_)))
        .unwrap_or(0);
    let mut body = blob[start..].to_vec();
    let mut announced = body.len();
    match fault {
        Fault::HangsUp(times) | Fault::IgnoresRanges(times) if times > 0 => {
            body.truncate(announced / 2);
            state.fault = Some(match fault {
                Fault::HangsUp(_) => Fault::HangsUp(times - 1),
                _ => Fault::IgnoresRanges(times - 1),
            });
        }
        Fault::Damages => *body.last_mut().unwrap() ^= 1,
        Fault::Lengthens => {
            body.extend([0; 100]);
            announced += 100;
        }
        _ => {}
    }
    let status = if start > 0 { 206 } else { 200 };
    let about = format!(
        "Content-Range: bytes {start}-{}/{}\r\n",
        blob.len() - 1,
        blob.len()
    );
    send(status, &about, announced, &body)
}
