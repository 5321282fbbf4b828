//! Models in registries of container images, downloaded from a small one on loopback that can misbehave.

use std::net::TcpListener;

use candle_core::quantized::GgmlDType;
use microgranite::error::Error;
use microgranite::sources::{self, Checkpoint, Freshness, Reference};
use serde_json::json;

use crate::gguf_granite::granite;
use crate::gguf_parts::{name, split};
use crate::registry_server::{Fault, Registry};
use crate::{assert_refused, fixture};

const UNAVAILABLE: u8 = 69;
const MODEL: &str = "application/vnd.ollama.image.model";
const OCTETS: &str = "application/octet-stream";

fn open(registry: &Registry, text: &str) -> Result<Checkpoint, Error> {
    sources::open(&text.parse()?, &registry.settings())
}

fn embedding(checkpoint: &Checkpoint) -> &'static str {
    let dtype = checkpoint
        .tensors()
        .unwrap()
        .dtype("model.embed_tokens.weight");
    dtype.unwrap()
}

/// A registry with an image of Ollama's, as it lays them out.
fn with_ollama() -> (Registry, String) {
    let registry = Registry::new();
    let hash = registry.push(
        "3b",
        &[
            (MODEL, None, &granite(GgmlDType::Q8_0).bytes()),
            (
                "application/vnd.ollama.image.template",
                None,
                b"{{ .Prompt }}",
            ),
            ("application/vnd.ollama.image.license", None, b"Apache"),
        ],
    );
    (registry, hash)
}

/// The reference to the image with this tag in the OCI registry.
fn oci(registry: &Registry, tag: &str) -> String {
    format!("oci://{}/library/tiny{tag}", registry.address)
}

fn paths(registry: &Registry) -> Vec<String> {
    let requests = registry.requests().into_iter();
    requests.map(|(path, ..)| path).collect()
}

#[test]
fn a_model_of_ollama_s_is_fetched_once_and_only_what_is_needed() {
    let (registry, hash) = with_ollama();
    let checkpoint = open(&registry, "ollama:tiny:3b").unwrap();
    assert_eq!(checkpoint.name, "tiny");
    assert_eq!(embedding(&checkpoint), "q8_0");
    let asked = paths(&registry);
    assert_eq!(asked.len(), 2, "the manifest and the model: {asked:?}");
    assert_eq!(asked[0], "/v2/library/tiny/manifests/3b");
    let folder = format!("microgranite/registry/models/{hash}");
    let file = format!("{folder}/tiny.gguf");
    assert!(registry.cached().contains(&file), "{:?}", registry.cached());
    assert!(
        registry
            .cached()
            .iter()
            .all(|file| !file.ends_with(".part"))
    );
    open(&registry, "ollama://tiny:3b").unwrap();
    assert_eq!(paths(&registry), Vec::<String>::new());
    // The other form of reference reads the same image.
    for text in [
        oci(&registry, ":3b"),
        oci(&registry, &format!("@sha256:{hash}")),
    ] {
        let checkpoint = open(&registry, &text).unwrap();
        assert_eq!(embedding(&checkpoint), "q8_0", "{text}");
    }
}

#[test]
fn an_anonymous_token_is_fetched_when_the_registry_asks_for_one() {
    let (registry, _) = with_ollama();
    registry.state.lock().unwrap().wants_token = true;
    open(&registry, "ollama:tiny:3b").unwrap();
    let requests = registry.requests();
    let tokens: Vec<_> = requests
        .iter()
        .filter(|(path, ..)| path.starts_with("/token"))
        .collect();
    assert_eq!(tokens.len(), 1, "{requests:?}");
    assert!(
        tokens[0]
            .0
            .contains("scope=repository%3Alibrary%2Ftiny%3Apull"),
        "{tokens:?}"
    );
    assert!(tokens[0].0.contains("service=tiny"), "{tokens:?}");
    assert_eq!(
        requests.last().unwrap().2.as_deref(),
        Some("Bearer anonymous.token")
    );

    let (registry, _) = with_ollama();
    registry.state.lock().unwrap().wants_token = true;
    registry.set_fault(Fault::AsksElsewhere);
    assert_refused(
        open(&registry, "ollama:tiny:3b"),
        UNAVAILABLE,
        &["ollama:tiny:3b", "https", "tokens"],
    );
}

#[test]
fn a_redirect_is_followed_as_for_the_hub() {
    let (registry, _) = with_ollama();
    {
        let state = &mut *registry.state.lock().unwrap();
        (state.redirects, state.wants_token) = (true, true);
    }
    open(&registry, "ollama:tiny:3b").unwrap();
    assert!(
        paths(&registry)
            .iter()
            .any(|path| path.starts_with("/elsewhere/"))
    );
}

#[test]
fn a_download_that_breaks_off_is_resumed_and_one_that_cannot_be_begins_again() {
    let (registry, _) = with_ollama();
    registry.set_fault(Fault::HangsUp(2));
    open(&registry, "ollama:tiny:3b").unwrap();
    let ranges: Vec<_> = registry
        .requests()
        .into_iter()
        .filter_map(|(_, range, _)| range)
        .collect();
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    assert!(ranges.iter().all(|range| range != "bytes=0-"), "{ranges:?}");

    let (registry, _) = with_ollama();
    registry.set_fault(Fault::HangsUp(3));
    let parts: &[&str] = &["ollama:tiny:3b", "tiny.gguf", "OLLAMA_REGISTRY"];
    assert_refused(open(&registry, "ollama:tiny:3b"), UNAVAILABLE, parts);
    registry.requests();
    open(&registry, "ollama:tiny:3b").unwrap();
    let ranges = registry
        .requests()
        .into_iter()
        .filter_map(|(_, range, _)| range);
    assert_eq!(ranges.count(), 1, "the next run goes on, too");

    let (registry, _) = with_ollama();
    registry.set_fault(Fault::IgnoresRanges(1));
    open(&registry, "ollama:tiny:3b").unwrap();
}

#[test]
fn what_arrives_damaged_is_not_kept_and_what_is_too_long_is_cut() {
    let (registry, _) = with_ollama();
    registry.set_fault(Fault::Damages);
    assert_refused(
        open(&registry, "ollama:tiny:3b"),
        UNAVAILABLE,
        &["tiny.gguf", "damaged"],
    );
    assert!(
        registry
            .cached()
            .iter()
            .all(|file| !file.contains("gguf") && !file.contains(".part"))
    );
    registry.set_fault(Fault::Lengthens);
    open(&registry, "ollama:tiny:3b").unwrap();
    // A manifest that is not the one of the digest.
    let other = format!("@sha256:{}", "0".repeat(64));
    registry
        .state
        .lock()
        .unwrap()
        .manifests
        .insert(other[1..].to_owned(), b"{}".to_vec());
    assert_refused(
        open(&registry, &oci(&registry, &other)),
        UNAVAILABLE,
        &["digest"],
    );
}

#[test]
fn failures_are_explained_and_the_cache_still_serves() {
    let (registry, hash) = with_ollama();
    assert_refused(
        open(&registry, "ollama:tiny:9b"),
        UNAVAILABLE,
        &["ollama:tiny:9b", "404", "tag"],
    );
    assert_refused(
        open(&registry, "ollama:granit4.1:3b"),
        UNAVAILABLE,
        &["404", "did you mean ollama:granite4.1:3b?"],
    );
    registry.set_fault(Fault::Status(401));
    assert_refused(
        open(&registry, "ollama:tiny:3b"),
        UNAVAILABLE,
        &["401", "not public"],
    );
    registry.set_fault(Fault::None);
    let mut settings = registry.settings();
    settings.offline = true;
    let reference: Reference = "ollama:tiny:3b".parse().unwrap();
    assert_refused(
        sources::open(&reference, &settings),
        UNAVAILABLE,
        &["ollama:tiny:3b", "HF_HUB_OFFLINE"],
    );
    open(&registry, "ollama:tiny:3b").unwrap();
    sources::open(&reference, &settings).unwrap();
    // Nothing listens on the port of a closed listener.
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut settings = registry.settings();
    settings.ollama_endpoint = format!("http://{gone}");
    sources::fetch(&reference, &settings, Freshness::Newest).unwrap();
    let other: Reference = "ollama:other".parse().unwrap();
    assert_refused(
        sources::open(&other, &settings),
        UNAVAILABLE,
        &[&gone.to_string(), "OLLAMA_REGISTRY"],
    );
    // A tag that moved is noticed when the newest is asked for.
    let newer = registry.push("3b", &[(MODEL, None, &granite(GgmlDType::Q4_0).bytes())]);
    assert_ne!(newer, hash);
    assert_eq!(
        embedding(&open(&registry, "ollama:tiny:3b").unwrap()),
        "q8_0"
    );
    sources::fetch(&reference, &registry.settings(), Freshness::Newest).unwrap();
    assert_eq!(
        embedding(&open(&registry, "ollama:tiny:3b").unwrap()),
        "q4_0"
    );
}

#[test]
fn gguf_files_of_an_oci_image_are_chosen_by_their_names() {
    let registry = Registry::new();
    let (q8, q4) = (
        granite(GgmlDType::Q8_0).bytes(),
        granite(GgmlDType::Q4_0).bytes(),
    );
    registry.push(
        "both",
        &[
            (OCTETS, Some("tiny-Q4_0.gguf"), &q4),
            (OCTETS, Some("tiny-Q8_0.gguf"), &q8),
            (OCTETS, Some("README.md"), b"text"),
        ],
    );
    registry.push("bare", &[("application/vnd.docker.ai.gguf.v3", None, &q4)]);
    let parts: Vec<Vec<u8>> = split(&granite(GgmlDType::Q8_0), 3, 4)
        .iter()
        .map(|part| part.bytes())
        .collect();
    let names = [1, 2, 3].map(|number| name("tiny-Q8_0", number, 3));
    let layers: Vec<_> = names
        .iter()
        .zip(&parts)
        .map(|(name, part)| (OCTETS, Some(&**name), &**part))
        .collect();
    registry.push("parts", &layers);
    registry.push("incomplete", &layers[..2]);
    for (tag, dtype) in [(":both", "q8_0"), (":bare", "q4_0"), (":parts", "q8_0")] {
        let checkpoint = open(&registry, &oci(&registry, tag)).unwrap();
        assert_eq!(
            (embedding(&checkpoint), &*checkpoint.name),
            (dtype, "tiny"),
            "{tag}"
        );
    }
    let incomplete = open(&registry, &oci(&registry, ":incomplete"));
    assert_refused(incomplete, 65, &["layers", "tiny-Q8_0-00003-of-00003.gguf"]);
}

#[test]
fn a_folder_of_safetensors_is_read_from_an_image_also_by_platform() {
    let registry = Registry::new();
    let names = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "model.safetensors",
    ];
    let files = names.map(|name| {
        (
            name,
            std::fs::read(fixture("granite-3-tiny").join(name)).unwrap(),
        )
    });
    let mut layers: Vec<_> = files
        .iter()
        .map(|(name, bytes)| (OCTETS, Some(*name), &**bytes))
        .collect();
    layers.push((OCTETS, Some("nested/other.json"), b"{}"));
    let hash = registry.push("folder", &layers);
    let size = |hash: &str| json!({"digest": format!("sha256:{hash}"), "size": 1});
    let (mut own, mut other) = (size(&hash), size(&"0".repeat(64)));
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    own["platform"] = json!({"os": "linux", "architecture": architecture});
    other["platform"] = json!({"os": "linux", "architecture": "none"});
    registry.push_manifest(
        "index",
        &json!({"schemaVersion": 2, "manifests": [other, own]}),
    );
    registry.push_manifest("elsewhere", &json!({"manifests": [other]}));
    for tag in [":folder", ":index"] {
        let checkpoint = open(&registry, &oci(&registry, tag)).unwrap();
        assert_eq!(checkpoint.tensors().unwrap().names().len(), 20);
        assert_eq!(checkpoint.name, "tiny");
    }
    assert!(
        registry
            .cached()
            .iter()
            .all(|file| !file.contains("nested") && !file.contains("other.json"))
    );
    let elsewhere = open(&registry, &oci(&registry, ":elsewhere"));
    assert_refused(elsewhere, 65, &["manifests", "linux/"]);
}

#[test]
fn shards_are_fetched_by_the_index_and_weights_that_cannot_be_read_are_not() {
    let registry = Registry::new();
    let read = |name: &str| std::fs::read(fixture("granite-3-tiny").join(name)).unwrap();
    let (config, tokenizer) = (read("config.json"), read("tokenizer.json"));
    let values = [0; 8];
    let shard = |name: &'static str| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], &values);
        safetensors::serialize([(name, view.unwrap())], None).unwrap()
    };
    let (a, b) = (shard("a"), shard("b"));
    let index = br#"{"weight_map": {"a": "model-a.safetensors", "b": "model-b.safetensors"}}"#;
    let all: [(&str, Option<&str>, &[u8]); 6] = [
        (OCTETS, Some("model-a.safetensors"), &a),
        (OCTETS, Some("model-b.safetensors"), &b),
        (OCTETS, Some("unlisted.safetensors"), b"not needed"),
        (OCTETS, Some("config.json"), &config),
        (OCTETS, Some("tokenizer.json"), &tokenizer),
        (OCTETS, Some("model.safetensors.index.json"), index),
    ];
    registry.push("shards", &all);
    registry.push("missing", &all[1..]);
    let checkpoint = open(&registry, &oci(&registry, ":shards")).unwrap();
    assert_eq!(checkpoint.tensors().unwrap().names(), ["a", "b"]);
    assert!(
        registry
            .cached()
            .iter()
            .all(|file| !file.contains("unlisted"))
    );
    let missing = open(&registry, &oci(&registry, ":missing"));
    assert_refused(missing, 65, &["model-a.safetensors", "index.json"]);

    let mut awq: serde_json::Value = serde_json::from_slice(&config).unwrap();
    awq["quantization_config"] = json!({"quant_method": "awq", "bits": 4});
    let awq = awq.to_string();
    let mut changed = all;
    changed[3].2 = awq.as_bytes();
    registry.push("awq", &changed);
    registry.requests();
    assert_refused(
        open(&registry, &oci(&registry, ":awq")),
        65,
        &["quant_method", "AWQ"],
    );
    assert_eq!(
        paths(&registry).len(),
        2,
        "the manifest and the configuration"
    );
}

#[test]
fn manifests_that_lie_are_refused_in_one_line() {
    let registry = Registry::new();
    let gguf = granite(GgmlDType::Q8_0).bytes();
    let layer = |change: serde_json::Value| {
        let mut layer = registry.layer(MODEL, &gguf);
        let fields = change.as_object().unwrap().clone();
        layer.as_object_mut().unwrap().extend(fields);
        layer
    };
    let title = |title: &str| json!({"annotations": {"org.opencontainers.image.title": title}});
    let many: Vec<_> = (0..1025).map(|_| layer(json!({}))).collect();
    let adapter = registry.layer("application/vnd.ollama.image.adapter", b"x");
    let tar = registry.layer("application/vnd.oci.image.layer.v1.tar+gzip", b"x");
    for (manifest, parts) in [
        (json!("text"), &["manifest"][..]),
        (json!({"layers": [3]}), &["manifest"]),
        (json!({}), &["layers", "neither"]),
        (json!({"layers": [tar]}), &["layers", "tar"]),
        (
            json!({"layers": [layer(json!({"digest": "md5:0"}))]}),
            &["layers", "digest"],
        ),
        (
            json!({"layers": [layer(json!({"digest": "sha256:../../x"}))]}),
            &["layers", "digest"],
        ),
        (
            json!({"layers": [layer(json!({"size": 0}))]}),
            &["layers", "size"],
        ),
        (
            json!({"layers": [layer(json!({"size": 1_u64 << 60}))]}),
            &["layers", "size"],
        ),
        (
            json!({"layers": [layer(json!({"size": -1}))]}),
            &["manifest"],
        ),
        (
            json!({"layers": [layer(title("../x.gguf"))]}),
            &["layers", "neither"],
        ),
        (
            json!({"layers": [layer(title("/x.gguf"))]}),
            &["layers", "neither"],
        ),
        (
            json!({"layers": [layer(title(".x.gguf"))]}),
            &["layers", "neither"],
        ),
        (
            json!({"layers": [layer(json!({})), layer(json!({}))]}),
            &["layers", "twice"],
        ),
        (
            json!({"layers": [layer(json!({})), adapter]}),
            &["layers", "LoRA"],
        ),
        (json!({"layers": many}), &["layers", "1024"]),
        (
            json!({"manifests": [{"digest": "sha256:0"}]}),
            &["manifests", "digest"],
        ),
    ] {
        registry.push_manifest("bad", &manifest);
        assert_refused(
            open(&registry, "ollama:tiny:bad"),
            65,
            &[&["ollama:tiny:bad"], parts].concat(),
        );
    }
    // A manifest that is longer than any registry takes.
    let manifest = vec![b' '; (4 << 20) + 1];
    registry
        .state
        .lock()
        .unwrap()
        .manifests
        .insert("long".into(), manifest);
    assert_refused(
        open(&registry, "ollama:tiny:long"),
        UNAVAILABLE,
        &["the manifest"],
    );
    let blobs = paths(&registry)
        .into_iter()
        .filter(|path| path.contains("blobs"));
    assert_eq!(blobs.count(), 0, "nothing of them is fetched");
    // A size that is not the blob's.
    registry.push_manifest("bad", &json!({"layers": [layer(json!({"size": 100}))]}));
    assert_refused(
        open(&registry, "ollama:tiny:bad"),
        UNAVAILABLE,
        &["damaged", "100 bytes"],
    );
}
