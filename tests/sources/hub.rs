//! Hub repositories, downloaded from a small hub on loopback that can misbehave.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;

use candle_core::quantized::GgmlDType;

use microgranite::error::Error;
use microgranite::sources::{self, Checkpoint, Freshness, Local, Reference};

use crate::gguf_granite::granite;
use crate::gguf_parts::{name, split};
use crate::hub_server::{COMMIT, Fault, Hub};
use crate::{assert_refused, fixture};

const UNAVAILABLE: u8 = 69;
const LATER_COMMIT: &str = "2222222222222222222222222222222222222222";

fn reference(revision: &str) -> Reference {
    format!("hf:granite/tiny@{revision}").parse().unwrap()
}

fn open(hub: &Hub) -> Result<Checkpoint, Error> {
    sources::open(&reference("main"), &hub.settings())
}

#[test]
fn a_repository_is_fetched_once_from_one_commit_and_only_what_is_needed() {
    let hub = Hub::with_granite();
    let checkpoint = open(&hub).unwrap();
    assert_eq!(checkpoint.name, "tiny");
    assert_eq!(checkpoint.tensors().unwrap().names().len(), 20);
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
    // The commit is in the cache by now, so a reference to it needs no hub.
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
    // So it says where there is none: a name that is nearly right is more likely.
    let typed = "hf:ibm-granite/granite-3.3-2b-instrct".parse().unwrap();
    assert_refused(
        sources::open(&typed, &hub.settings()),
        UNAVAILABLE,
        &[
            "401",
            "did you mean hf:ibm-granite/granite-3.3-2b-instruct?",
        ],
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
    // Nothing listens on the port of a closed listener.
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
    let fetched = std::fs::read(checkpoint.tensors().unwrap().file("model.norm.weight")).unwrap();
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
    assert_eq!(open(&hub).unwrap().tensors().unwrap().names(), ["a", "b"]);
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

/// A hub whose repository has the small Granite in these files, each in the type that its name states, or else an
/// invalid file.
fn with_ggufs(names: &[&str]) -> Hub {
    let file = |name: &&str| {
        let dtype = match *name {
            name if name.ends_with("Q8_0.gguf") => GgmlDType::Q8_0,
            name if name.ends_with("Q4_0.gguf") => GgmlDType::Q4_0,
            name if name.ends_with("f16.gguf") => GgmlDType::F16,
            _ => return ((*name).to_owned(), b"not a model".to_vec()),
        };
        ((*name).to_owned(), granite(dtype).bytes())
    };
    Hub::with(names.iter().map(file).collect())
}

/// The type of the embedding in the model that `text` names.
fn embedding(hub: &Hub, text: &str) -> Result<&'static str, Error> {
    let checkpoint = sources::open(&text.parse().unwrap(), &hub.settings())?;
    Ok(checkpoint
        .tensors()
        .unwrap()
        .dtype("model.embed_tokens.weight")
        .unwrap())
}

/// The names of the files requested since the last call.
fn files_asked_for(hub: &Hub) -> Vec<String> {
    let requests = hub.requests().into_iter();
    let files = requests.filter_map(|(path, _)| Some(path.split_once("/resolve/")?.1.to_owned()));
    let mut names: Vec<String> = files
        .map(|path| path.split_once('/').unwrap().1.to_owned())
        .collect();
    names.dedup();
    names
}

#[test]
fn the_only_gguf_file_is_taken_whatever_it_is_called() {
    let hub = with_ggufs(&["tiny-Q8_0.gguf", "README.md"]);
    let checkpoint = open(&hub).unwrap();
    assert_eq!(checkpoint.name, "tiny");
    assert_eq!(embedding(&hub, "hf:granite/tiny").unwrap(), "q8_0");
    hub.requests();
    open(&hub).unwrap();
    assert_eq!(hub.requests(), []);
    let none = [("README.md".to_owned(), b"x".to_vec())];
    assert_refused(
        open(&Hub::with(none.into())),
        65,
        &["hf:granite/tiny", "safetensors", ".gguf"],
    );
}

#[test]
fn of_several_gguf_files_the_best_for_int8_is_taken_and_a_label_takes_another() {
    const FILES: [&str; 6] = [
        "tiny-IQ2_XXS.gguf",
        "tiny-Q4_0.gguf",
        "tiny-Q8_0.gguf",
        "tiny-f16.gguf",
        "mmproj-tiny-f16.gguf",
        "tiny-Q8_0-00001-of-00002.gguf",
    ];
    let hub = with_ggufs(&FILES);
    for (text, dtype, file) in [
        ("hf:granite/tiny", "q8_0", "tiny-Q8_0.gguf"),
        ("hf:granite/tiny:q4_0", "q4_0", "tiny-Q4_0.gguf"),
        ("hf:granite/tiny@v1:F16", "f16", "tiny-f16.gguf"),
    ] {
        assert_eq!(embedding(&hub, text).unwrap(), dtype, "{text}");
        assert_eq!(files_asked_for(&hub), [file], "{text}");
    }
    // All are in the cache now, and the choice does not depend on what else is cached.
    for (text, dtype) in [
        ("hf:granite/tiny:Q4_0", "q4_0"),
        ("hf:granite/tiny", "q8_0"),
        ("hf:granite/tiny:tiny-f16.gguf", "f16"),
    ] {
        assert_eq!(embedding(&hub, text).unwrap(), dtype, "{text}");
    }
    assert_eq!(hub.requests(), []);

    let without_the_best = with_ggufs(&["tiny-Q4_0.gguf", "tiny-f16.gguf"]);
    assert_eq!(
        embedding(&without_the_best, "hf:granite/tiny").unwrap(),
        "f16"
    );
}

/// A hub with the small Granite in three parts, and smaller in a single file.
fn with_parts() -> Hub {
    let parts = split(&granite(GgmlDType::Q8_0), 3, 4);
    let parts = parts.iter().enumerate();
    let mut files: BTreeMap<String, Vec<u8>> = parts
        .map(|(at, part)| (name("tiny-Q8_0", at + 1, 3), part.bytes()))
        .collect();
    files.insert("tiny-Q4_0.gguf".into(), granite(GgmlDType::Q4_0).bytes());
    Hub::with(files)
}

#[test]
fn all_parts_of_a_model_are_fetched_by_its_label() {
    let all = [1, 2, 3].map(|number| name("tiny-Q8_0", number, 3));
    for text in [
        "hf:granite/tiny:Q8_0",
        "hf:granite/tiny",
        "hf:granite/tiny:tiny-Q8_0-00002-of-00003.gguf",
    ] {
        let hub = with_parts();
        assert_eq!(embedding(&hub, text).unwrap(), "q8_0", "{text}");
        assert_eq!(files_asked_for(&hub), all, "{text}");
        embedding(&hub, text).unwrap();
        assert_eq!(hub.requests(), [], "the cache has all parts");
        let snapshots = hub.cache.path().join("models--granite--tiny/snapshots");
        std::fs::remove_file(snapshots.join(COMMIT).join(&all[1])).unwrap();
        embedding(&hub, text).unwrap();
        assert_eq!(files_asked_for(&hub), [&*all[1]], "only what is missing");
    }
    assert_eq!(
        embedding(&with_parts(), "hf:granite/tiny:Q4_0").unwrap(),
        "q4_0"
    );
}

#[test]
fn parts_are_checked_and_resumed_like_single_files() {
    const SECOND: &str = "tiny-Q8_0-00002-of-00003.gguf";
    let hub = with_parts();
    hub.set_fault(Fault::HangsUp(SECOND, 2));
    embedding(&hub, "hf:granite/tiny:Q8_0").unwrap();
    let hub = with_parts();
    hub.set_fault(Fault::Damages(SECOND));
    let damaged = embedding(&hub, "hf:granite/tiny:Q8_0");
    assert_refused(damaged, UNAVAILABLE, &[SECOND, "damaged"]);
    let hub = with_parts();
    hub.state.lock().unwrap().files.remove(SECOND);
    let missing = embedding(&hub, "hf:granite/tiny:Q8_0");
    assert_refused(
        missing,
        65,
        &["hf:granite/tiny:Q8_0", "but not its part", SECOND],
    );
    assert_eq!(files_asked_for(&hub), Vec::<String>::new());
    // Without a label, a model that is complete is taken.
    assert_eq!(embedding(&hub, "hf:granite/tiny").unwrap(), "q4_0");
    hub.state.lock().unwrap().files.remove("tiny-Q4_0.gguf");
    let hub = Hub::with(std::mem::take(&mut hub.state.lock().unwrap().files));
    let missing = embedding(&hub, "hf:granite/tiny");
    assert_refused(missing, 65, &["but not its part", SECOND]);
}

#[test]
fn a_label_that_is_not_there_is_refused_with_those_that_are() {
    let hub = with_ggufs(&["tiny-Q8_0.gguf", "tiny-Q4_0.gguf"]);
    assert_refused(
        embedding(&hub, "hf:granite/tiny:Q6_K"),
        65,
        &["hf:granite/tiny:Q6_K: files: ", "Q4_0, Q8_0"],
    );
    let unread = with_ggufs(&["tiny-IQ2_XXS.gguf", "tiny-MXFP4.gguf"]);
    assert_refused(
        open(&unread),
        65,
        &["hf:granite/tiny", "IQ2_XXS, MXFP4", "Q8_0"],
    );
    let nested = with_ggufs(&["Q8_0/tiny-Q8_0.gguf"]);
    assert_refused(open(&nested), 65, &["hf:granite/tiny", "in folders"]);
    assert_refused(
        embedding(&Hub::with_granite(), "hf:granite/tiny:Q8_0"),
        65,
        &["hf:granite/tiny:Q8_0", "no .gguf file"],
    );
    assert_eq!(files_asked_for(&hub), Vec::<String>::new());
}

#[test]
fn safetensors_are_preferred_to_gguf_files_unless_a_label_names_one() {
    let hub = Hub::with_granite();
    let gguf = granite(GgmlDType::Q8_0).bytes();
    let file = "tiny-Q8_0.gguf";
    hub.state.lock().unwrap().files.insert(file.into(), gguf);
    assert_eq!(embedding(&hub, "hf:granite/tiny").unwrap(), "bf16");
    assert!(!files_asked_for(&hub).contains(&file.to_owned()));
    assert_eq!(embedding(&hub, "hf:granite/tiny:Q8_0").unwrap(), "q8_0");
    assert_eq!(files_asked_for(&hub), [file]);
    assert_eq!(embedding(&hub, "hf:granite/tiny").unwrap(), "bf16");
}

#[test]
fn weights_that_could_not_be_read_are_not_fetched() {
    let hub = Hub::with_granite();
    {
        let files = &mut hub.state.lock().unwrap().files;
        let config = files.get_mut("config.json").unwrap();
        let mut json: serde_json::Value = serde_json::from_slice(config).unwrap();
        json["quantization_config"] = serde_json::json!({"quant_method": "awq", "bits": 4});
        *config = json.to_string().into();
    }
    assert_refused(open(&hub), 65, &["quant_method", "AWQ", "unquantized"]);
    assert!(!files_asked_for(&hub).contains(&"model.safetensors".to_owned()));
}

#[test]
fn a_repository_of_another_form_is_refused_by_its_name() {
    for (file, form) in [
        ("onnx/model.onnx", "ONNX"),
        ("openvino_model.bin", "OpenVINO IR"),
        ("adapter_config.json", "LoRA"),
        ("pytorch_model.bin", "pickle"),
    ] {
        let files = ["config.json", "README.md", file].map(|name| (name.to_owned(), b"x".to_vec()));
        assert_refused(
            open(&Hub::with(files.into())),
            65,
            &["hf:granite/tiny", file, form, "cannot be read; "],
        );
    }
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
