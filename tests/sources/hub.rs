//! Hub repositories, fetched from a small hub on loopback that can misbehave.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use microgranite::error::Error;
use microgranite::sources::{self, Checkpoint, Freshness, Local, Reference, Settings};

use crate::gguf_files::granite;
use crate::{assert_refused, fixture};

const UNAVAILABLE: u8 = 69;
const COMMIT: &str = "1111111111111111111111111111111111111111";
const LATER_COMMIT: &str = "2222222222222222222222222222222222222222";

/// What the hub does wrong.
#[derive(Clone, PartialEq)]
enum Fault {
    None,
    /// Answers everything with this status.
    Status(u16),
    /// Announces the whole of this file, sends half of what was asked for and hangs up, so many times.
    HangsUp(&'static str, usize),
    /// Sends this file with its first byte changed.
    Damages(&'static str),
    /// Ends this file early in an answer that is well-formed in itself.
    Shortens(&'static str),
}

struct State {
    /// The commit of every revision.
    commits: BTreeMap<String, String>,
    files: BTreeMap<String, Vec<u8>>,
    fault: Fault,
    /// Path and `Authorization` of every request.
    requests: Vec<(String, Option<String>)>,
}

/// A hub with one repository, and an empty cache beside it.
struct Hub {
    endpoint: String,
    state: Arc<Mutex<State>>,
    cache: TempDir,
}

impl Hub {
    fn with(files: BTreeMap<String, Vec<u8>>) -> Self {
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
                // A client that hangs up is its own affair.
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

    /// The small Granite and files that nobody needs.
    fn with_granite() -> Self {
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

    fn settings(&self) -> Settings {
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

    fn open(&self) -> Result<Checkpoint, Error> {
        sources::open(&reference("main"), &self.settings())
    }

    fn set_fault(&self, fault: Fault) {
        self.state.lock().unwrap().fault = fault;
    }

    /// The paths that were asked for since the last call.
    fn requests(&self) -> Vec<(String, Option<String>)> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    /// Every file in the cache's snapshots, by name.
    fn cached(&self) -> Vec<PathBuf> {
        let snapshots = self.cache.path().join("models--granite--tiny/snapshots");
        let commits = std::fs::read_dir(snapshots).into_iter().flatten().flatten();
        let files = commits.flat_map(|commit| std::fs::read_dir(commit.path()).unwrap());
        files.map(|file| file.unwrap().file_name().into()).collect()
    }
}

fn reference(revision: &str) -> Reference {
    Reference::Hub {
        repo: "granite/tiny".into(),
        revision: revision.into(),
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
    // Large files go by their SHA-256, small ones by a hash of git's that nobody checks.
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
    // A request for the first byte only asks about the file.
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

#[test]
fn a_repository_is_fetched_once_from_one_commit_and_only_what_is_needed() {
    let hub = Hub::with_granite();
    let checkpoint = hub.open().unwrap();
    assert_eq!(checkpoint.name, "tiny");
    assert_eq!(checkpoint.tensors.names().len(), 20);
    let requests = hub.requests();
    let (info, files) = requests.split_first().unwrap();
    assert_eq!(info.0, "/api/models/granite/tiny/revision/main");
    let mut names: Vec<&str> = files
        .iter()
        .map(|(path, token)| {
            assert_eq!(*token, None, "no token was set");
            path.strip_prefix(&format!("/granite/tiny/resolve/{COMMIT}/"))
                .unwrap()
        })
        .collect();
    assert_eq!(
        names.last(),
        Some(&"model.safetensors"),
        "the weights come last"
    );
    names.dedup();
    assert_eq!(
        names,
        [
            "generation_config.json",
            "config.json",
            "tokenizer.json",
            "model.safetensors"
        ]
    );

    hub.open().unwrap();
    assert_eq!(hub.requests(), [], "the cache has everything");
}

#[test]
fn the_token_goes_with_every_request() {
    let hub = Hub::with_granite();
    let mut settings = hub.settings();
    settings.hub_token = Some(sources::Token("hf_secret".into()));
    sources::open(&reference("main"), &settings).unwrap();
    let requests = hub.requests();
    assert!(requests.len() > 4);
    for (path, token) in requests {
        assert_eq!(token.as_deref(), Some("Bearer hf_secret"), "{path}");
    }
}

#[test]
fn the_token_that_hugging_face_tools_stored_is_found() {
    let hub = Hub::with_granite();
    std::fs::write(hub.cache.path().join("token"), "hf_stored\n").unwrap();
    hub.open().unwrap();
    assert_eq!(hub.requests()[0].1.as_deref(), Some("Bearer hf_stored"));
}

#[test]
fn a_revision_is_asked_for_by_name_and_a_missing_one_is_explained() {
    let hub = Hub::with_granite();
    sources::open(&reference("v1"), &hub.settings()).unwrap();
    assert_eq!(hub.requests()[0].0, "/api/models/granite/tiny/revision/v1");
    let missing = sources::open(&reference("v9"), &hub.settings());
    assert_refused(
        missing,
        UNAVAILABLE,
        &["hf:granite/tiny@v9", "404", "revision", "HF_TOKEN"],
    );
    // The commit itself is in the cache by now, so naming it needs no hub.
    hub.requests();
    sources::open(&reference(COMMIT), &hub.settings()).unwrap();
    assert_eq!(hub.requests(), []);
}

#[test]
fn a_repository_that_is_not_public_is_explained() {
    let hub = Hub::with_granite();
    hub.set_fault(Fault::Status(401));
    assert_refused(
        hub.open(),
        UNAVAILABLE,
        &["hf:granite/tiny", "401", "HF_TOKEN"],
    );
}

#[test]
fn offline_uses_the_cache_or_says_that_it_may_not_ask() {
    let hub = Hub::with_granite();
    let mut settings = hub.settings();
    settings.offline = true;
    assert_refused(
        sources::open(&reference("main"), &settings),
        UNAVAILABLE,
        &["hf:granite/tiny", "HF_HUB_OFFLINE"],
    );
    assert_eq!(hub.requests(), []);
    hub.open().unwrap();
    hub.requests();
    sources::fetch(&reference("main"), &settings, Freshness::Newest).unwrap();
    sources::open(&reference("main"), &settings).unwrap();
    assert_eq!(hub.requests(), []);
}

#[test]
fn a_hub_that_cannot_be_reached_is_explained_and_the_cache_still_serves() {
    let hub = Hub::with_granite();
    let mut settings = hub.settings();
    // Nothing listens on the port of a listener that is gone.
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    settings.hub_endpoint = format!("http://{gone}");
    let unreachable = sources::open(&reference("main"), &settings);
    assert_refused(
        unreachable,
        UNAVAILABLE,
        &["hf:granite/tiny", &gone.to_string(), "HF_ENDPOINT"],
    );
    hub.open().unwrap();
    sources::fetch(&reference("main"), &settings, Freshness::Newest).unwrap();
}

#[test]
fn a_branch_that_moved_is_noticed_when_the_newest_is_asked_for() {
    let hub = Hub::with_granite();
    let fetch = |freshness| {
        let local = sources::fetch(&reference("main"), &hub.settings(), freshness).unwrap();
        let Local::Folder(path) = local else {
            panic!("not a folder")
        };
        path.file_name().unwrap().to_str().unwrap().to_owned()
    };
    assert_eq!(fetch(Freshness::Cached), COMMIT);
    hub.state
        .lock()
        .unwrap()
        .commits
        .insert("main".into(), LATER_COMMIT.into());
    assert_eq!(fetch(Freshness::Cached), COMMIT);
    assert_eq!(fetch(Freshness::Newest), LATER_COMMIT);
    assert_eq!(fetch(Freshness::Cached), LATER_COMMIT);
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_was() {
    let hub = Hub::with_granite();
    hub.set_fault(Fault::HangsUp("model.safetensors", 2));
    let checkpoint = hub.open().unwrap();
    let fetched = std::fs::read(checkpoint.tensors.file("model.norm.weight")).unwrap();
    assert!(fetched == std::fs::read(fixture("granite-3-tiny/model.safetensors")).unwrap());
}

#[test]
fn a_download_that_keeps_breaking_off_is_given_up_and_leaves_no_model_behind() {
    let hub = Hub::with_granite();
    hub.set_fault(Fault::HangsUp("model.safetensors", 100));
    assert_refused(
        hub.open(),
        UNAVAILABLE,
        &["hf:granite/tiny", "model.safetensors", "network"],
    );
    assert!(!hub.cached().contains(&PathBuf::from("model.safetensors")));
    hub.set_fault(Fault::None);
    hub.open().unwrap();
}

#[test]
fn a_file_that_arrives_short_or_changed_is_removed_again() {
    for fault in [
        Fault::Damages("model.safetensors"),
        Fault::Shortens("model.safetensors"),
        Fault::Shortens("config.json"),
    ] {
        let hub = Hub::with_granite();
        hub.set_fault(fault);
        assert_refused(hub.open(), UNAVAILABLE, &["hf:granite/tiny", "damaged"]);
        assert!(!hub.cached().contains(&PathBuf::from("model.safetensors")));
        hub.set_fault(Fault::None);
        hub.open().unwrap();
    }
}

#[test]
fn shards_are_fetched_by_their_index() {
    let hub = Hub::with_granite();
    let values = [0u8; 8];
    {
        let files = &mut hub.state.lock().unwrap().files;
        files.remove("model.safetensors");
        let mut weight_map = serde_json::Map::new();
        for name in ["a", "b"] {
            let view =
                safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], &values)
                    .unwrap();
            let shard = format!("model-{name}.safetensors");
            files.insert(
                shard.clone(),
                safetensors::serialize([(name, view)], None).unwrap(),
            );
            weight_map.insert(name.into(), shard.into());
        }
        let index = serde_json::json!({ "weight_map": weight_map }).to_string();
        files.insert("model.safetensors.index.json".into(), index.into());
        files.insert("model-unlisted.safetensors".into(), b"not needed".to_vec());
    }
    assert_eq!(hub.open().unwrap().tensors.names(), ["a", "b"]);
    assert!(
        !hub.cached()
            .contains(&PathBuf::from("model-unlisted.safetensors"))
    );

    // A cache that lost a shard is not complete, and is filled again.
    let snapshot = hub
        .cache
        .path()
        .join("models--granite--tiny/snapshots")
        .join(COMMIT);
    std::fs::remove_file(snapshot.join("model-a.safetensors")).unwrap();
    hub.open().unwrap();
}

#[test]
fn an_index_that_names_files_elsewhere_fetches_nothing_there() {
    let hub = Hub::with_granite();
    {
        let files = &mut hub.state.lock().unwrap().files;
        files.remove("model.safetensors");
        let index = r#"{"weight_map": {"a": "../../../../outside.safetensors"}}"#;
        files.insert("model.safetensors.index.json".into(), index.into());
    }
    assert_refused(
        hub.open(),
        65,
        &["model.safetensors.index.json", "beside the index"],
    );
    assert!(
        hub.requests()
            .iter()
            .all(|(path, _)| !path.contains("outside"))
    );
}

#[test]
fn the_only_gguf_file_is_taken_and_several_are_a_choice_for_the_user() {
    let gguf = granite(candle_core::quantized::GgmlDType::Q8_0).bytes();
    let hub = Hub::with([("tiny-Q8_0.gguf".to_owned(), gguf.clone())].into());
    let checkpoint = hub.open().unwrap();
    assert_eq!(checkpoint.name, "tiny");
    assert_eq!(
        checkpoint.tensors.dtype("model.embed_tokens.weight"),
        Some("q8_0")
    );
    hub.requests();
    hub.open().unwrap();
    assert_eq!(hub.requests(), []);

    let two = ["a.gguf", "b.gguf"].map(|name| (name.to_owned(), gguf.clone()));
    assert_refused(
        Hub::with(two.into()).open(),
        65,
        &["hf:granite/tiny", "2 .gguf files", "a.gguf"],
    );
    let none = [("README.md".to_owned(), b"x".to_vec())];
    assert_refused(
        Hub::with(none.into()).open(),
        65,
        &["hf:granite/tiny", "safetensors", ".gguf"],
    );
}

#[test]
fn a_repository_without_a_tokenizer_says_which_file_is_missing() {
    let hub = Hub::with_granite();
    hub.state.lock().unwrap().files.remove("tokenizer.json");
    assert_refused(
        hub.open(),
        UNAVAILABLE,
        &["hf:granite/tiny", "tokenizer.json", "404"],
    );
}

#[test]
fn a_commit_that_is_not_one_never_becomes_a_path() {
    let hub = Hub::with_granite();
    hub.state
        .lock()
        .unwrap()
        .commits
        .insert("main".into(), "../../../escaped".into());
    assert_refused(hub.open(), UNAVAILABLE, &["hf:granite/tiny", "commit"]);
    assert!(
        !Path::new(hub.cache.path())
            .join("models--granite--tiny")
            .exists()
    );
}
