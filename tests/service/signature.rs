//! Tests of publishers' signatures, with keys that are made here.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use microgranite::sources::hash::sha256_of;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SigningKey};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::harness::fixture;
use crate::process::{microgranite, running_with};

const PAYLOAD: &str = "application/vnd.in-toto+json";

/// A copy of the fixture.
fn model() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("granite");
    std::fs::create_dir(&path).unwrap();
    for name in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "model.safetensors",
    ] {
        std::fs::copy(fixture("granite-3-tiny").join(name), path.join(name)).unwrap();
    }
    (folder, path)
}

/// The statement that a publisher signs: all files, and one that was not downloaded.
fn statement(folder: &Path) -> Value {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let mut files: Vec<(String, String)> = entries
        .map(|entry| {
            let bytes = std::fs::read(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), sha256_of(&bytes))
        })
        .collect();
    files.push(("README.md".to_owned(), sha256_of(b"# Granite")));
    files.sort();
    let mut root = Sha256::new();
    for (_, digest) in &files {
        let byte = |at| u8::from_str_radix(&digest[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..64).step_by(2).map(byte).collect();
        root.update(bytes);
    }
    let root: String = root
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let resources = files
        .iter()
        .map(|(name, digest)| json!({"name": name, "algorithm": "sha256", "digest": digest}));
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "granite", "digest": {"sha256": root}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": false},
            "resources": resources.collect::<Vec<Value>>(),
        },
    })
}

fn bundle(statement: &Value, key: &KeyPair) -> Value {
    let payload = statement.to_string();
    let signed = format!(
        "DSSEv1 {} {PAYLOAD} {} {payload}",
        PAYLOAD.len(),
        payload.len()
    );
    let signature = key.sign(signed.as_bytes()).unwrap();
    json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": "x"}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": STANDARD.encode(payload),
            "payloadType": PAYLOAD,
            "signatures": [{"sig": STANDARD.encode(signature), "keyid": ""}],
        },
    })
}

/// What `serve` says about a model that it must not serve, and its exit code.
fn refused(model: &Path, when: &str, key: &Path) -> (i32, String) {
    let flags = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--log",
        "error",
        "--verify-signature",
        when,
    ];
    let mut command = microgranite(&flags);
    let output = command
        .arg(model)
        .arg("--signature-key")
        .arg(key)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    (output.status.code().unwrap(), text)
}

fn state(model: &Path, flags: &[&str]) -> Value {
    let (_process, url) = running_with(model.to_str().unwrap(), flags);
    let models: Value = reqwest::blocking::get(format!("{url}/v1/models"))
        .unwrap()
        .json()
        .unwrap();
    let state = models["data"][0]["quantization"]["signature"].clone();
    let metrics = reqwest::blocking::get(format!("{url}/metrics"))
        .unwrap()
        .text()
        .unwrap();
    let line = format!("microgranite_signature_state{{state={state}}} 1\n");
    assert!(metrics.contains(&line), "{line}");
    state
}

#[test]
fn a_signed_model_is_verified_and_one_without_a_signature_is_absent_or_refused() {
    let (folder, path) = model();
    let key_file = folder.path().join("key.pem");
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        std::fs::write(&key_file, key.public_key_pem()).unwrap();
        let _none_before = std::fs::remove_file(path.join("model.sig"));
        let flags = [
            "--signature-key",
            key_file.to_str().unwrap(),
            "--verify-signature",
        ];
        let with = |when| [&flags[..], &[when]].concat();
        assert_eq!(state(&path, &with("if-present")), "absent");
        let (code, text) = refused(&path, "required", &key_file);
        assert_eq!(code, 65, "{text}");
        assert!(text.contains("model.sig"), "{text}");
        let signed = bundle(&statement(&path), &key).to_string();
        std::fs::write(path.join("model.sig"), signed).unwrap();
        assert_eq!(state(&path, &with("required")), "verified");
        assert_eq!(state(&path, &with("if-present")), "verified");
    }
    assert_eq!(state(&path, &[]), "off");
}

#[test]
fn what_was_not_signed_is_refused() {
    let (folder, path) = model();
    let (key_file, other_file) = (
        folder.path().join("key.pem"),
        folder.path().join("other.pem"),
    );
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    std::fs::write(&key_file, key.public_key_pem()).unwrap();
    std::fs::write(&other_file, other.public_key_pem()).unwrap();
    let good = statement(&path);
    let signature = path.join("model.sig");
    let signed = bundle(&good, &key);
    let mut tampered = signed.clone();
    let payload = good.to_string().replace("README.md", "README.mk");
    tampered["dsseEnvelope"]["payload"] = json!(STANDARD.encode(payload));
    let with = |pointer: &str, value: Value| {
        let mut changed = good.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        bundle(&changed, &key).to_string()
    };
    let mut without = signed.clone();
    without["dsseEnvelope"]["signatures"] = json!([]);
    for (text, words) in [
        (String::new(), "JSON"),
        ("[".repeat(100_000), "JSON"),
        ("{}".to_owned(), "JSON"),
        (json!({"mediaType": "text/plain"}).to_string(), "mediaType"),
        (tampered.to_string(), "was not made with the key"),
        (without.to_string(), "signatures"),
        (
            bundle(&good, &other).to_string(),
            "was not made with the key",
        ),
        (with("/predicateType", json!("other")), "predicateType"),
        (
            with("/subject/0/digest/sha256", json!("0".repeat(64))),
            "subject",
        ),
        (
            with("/predicate/resources/0/digest", json!("é".repeat(32))),
            "digest",
        ),
        (
            with("/predicate/resources/0/algorithm", json!("md5")),
            "serialization",
        ),
    ] {
        std::fs::write(&signature, text).unwrap();
        let (code, text) = refused(&path, "if-present", &key_file);
        assert_eq!(code, 65, "{words}: {text}");
        assert!(
            text.contains(words) && text.contains("model.sig"),
            "{words}: {text}"
        );
    }
    // The files do not match.
    std::fs::write(&signature, signed.to_string()).unwrap();
    assert_eq!(refused(&path, "required", &other_file).0, 65);
    let config = path.join("generation_config.json");
    let before = std::fs::read(&config).unwrap();
    std::fs::write(&config, "{}").unwrap();
    let (code, text) = refused(&path, "required", &key_file);
    assert!(
        code == 65 && text.contains("not the one that was signed"),
        "{text}"
    );
    std::fs::write(&config, before).unwrap();
    std::fs::write(path.join("chat_template.jinja"), "{{ messages }}").unwrap();
    let (code, text) = refused(&path, "required", &key_file);
    assert!(code == 65 && text.contains("not among those"), "{text}");

    let output = microgranite(&["quantize", "--verify-signature", "required"])
        .arg("--signature-key")
        .arg(&key_file)
        .arg(&path)
        .arg("--output")
        .arg(folder.path().join("packed"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(65));
    assert!(!folder.path().join("packed").exists());
}

#[test]
fn keys_that_cannot_be_used_are_one_line() {
    let (folder, path) = model();
    let file = folder.path().join("key.pem");
    let edwards = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    for (text, words) in [
        (String::new(), "no public key"),
        (edwards.public_key_pem(), "P-256 and P-384"),
        (edwards.serialize_pem(), "no public key"),
    ] {
        std::fs::write(&file, text).unwrap();
        let (code, text) = refused(&path, "required", &file);
        assert_eq!(code, 78, "{text}");
        assert!(text.contains(words), "{text}");
    }
    assert_eq!(refused(&path, "required", Path::new("/nowhere")).0, 66);
    let mut command = microgranite(&["serve", "--verify-signature", "required"]);
    let output = command.arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
}
