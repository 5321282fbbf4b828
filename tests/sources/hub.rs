//! Hub repositories, fetched from a small hub on loopback that can misbehave.

use std::net::TcpListener;
use std::path::PathBuf;

use microgranite::error::Error;
use microgranite::sources::{self, Checkpoint, Freshness, Local, Reference};

use crate::gguf_granite::granite;
use crate::hub_server::{COMMIT, Fault, Hub};
use crate::{assert_refused, fixture};

const UNAVAILABLE: u8 = 69;
const LATER_COMMIT: &str = "2222222222222222222222222222222222222222";

fn reference(revision: &str) -> Reference {
    Reference::Hub {
        repo: "granite/tiny".into(),
        revision: revision.into(),
    }
}

fn open(hub: &Hub) -> Result<Checkpoint, Error> {
    sources::open(&reference("main"), &hub.settings())
}

#[test]
fn a_repository_is_fetched_once_from_one_commit_and_only_what_is_needed() {
    let hub = Hub::with_granite();
    let checkpoint = open(&hub).unwrap();
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

    open(&hub).unwrap();
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
    open(&hub).unwrap();
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
        open(&hub),
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
    open(&hub).unwrap();
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
    open(&hub).unwrap();
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
    let checkpoint = open(&hub).unwrap();
    let fetched = std::fs::read(checkpoint.tensors.file("model.norm.weight")).unwrap();
    assert!(fetched == std::fs::read(fixture("granite-3-tiny/model.safetensors")).unwrap());
}

#[test]
fn a_download_that_keeps_breaking_off_is_given_up_and_leaves_no_model_behind() {
    let hub = Hub::with_granite();
    hub.set_fault(Fault::HangsUp("model.safetensors", 100));
    assert_refused(
        open(&hub),
        UNAVAILABLE,
        &["hf:granite/tiny", "model.safetensors", "network"],
    );
    assert!(!hub.cached().contains(&PathBuf::from("model.safetensors")));
    hub.set_fault(Fault::None);
    open(&hub).unwrap();
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
        assert_refused(open(&hub), UNAVAILABLE, &["hf:granite/tiny", "damaged"]);
        assert!(!hub.cached().contains(&PathBuf::from("model.safetensors")));
        hub.set_fault(Fault::None);
        open(&hub).unwrap();
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
    assert_eq!(open(&hub).unwrap().tensors.names(), ["a", "b"]);
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
    open(&hub).unwrap();
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
        open(&hub),
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
    let checkpoint = open(&hub).unwrap();
    assert_eq!(checkpoint.name, "tiny");
    assert_eq!(
        checkpoint.tensors.dtype("model.embed_tokens.weight"),
        Some("q8_0")
    );
    hub.requests();
    open(&hub).unwrap();
    assert_eq!(hub.requests(), []);

    let two = ["a.gguf", "b.gguf"].map(|name| (name.to_owned(), gguf.clone()));
    assert_refused(
        open(&Hub::with(two.into())),
        65,
        &["hf:granite/tiny", "2 .gguf files", "a.gguf"],
    );
    let none = [("README.md".to_owned(), b"x".to_vec())];
    assert_refused(
        open(&Hub::with(none.into())),
        65,
        &["hf:granite/tiny", "safetensors", ".gguf"],
    );
}

#[test]
fn a_repository_without_a_tokenizer_says_which_file_is_missing() {
    let hub = Hub::with_granite();
    hub.state.lock().unwrap().files.remove("tokenizer.json");
    assert_refused(
        open(&hub),
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
    assert_refused(open(&hub), UNAVAILABLE, &["hf:granite/tiny", "commit"]);
    assert!(!hub.cache.path().join("models--granite--tiny").exists());
}
