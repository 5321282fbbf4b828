//! The publisher's signature of a model folder: `model.sig`, in the form of the OpenSSF's Model Signing.
//!
//! The file is a Sigstore bundle with a DSSE envelope; its payload is an in-toto statement that lists the model's files with
//! their SHA-256. It is verified with a public key that the operator has, offline. Bundles that are signed with a
//! certificate of Sigstore's or another authority name no such key, and are not verified here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, UnparsedPublicKey, VerificationAlgorithm,
};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio_rustls::rustls;
use x509_cert::der::Decode;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::spki::SubjectPublicKeyInfoRef;

use super::Checkpoint;
use super::hash::sha256;
use crate::error::{Error, Result};

/// The name of the file.
pub const SIGNATURE: &str = "model.sig";
/// Bytes of it at most: a hundred thousand files.
const MOST_BYTES: u64 = 16 << 20;

const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PAYLOAD: &str = "application/vnd.in-toto+json";
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const PREDICATE: &str = "https://model_signing/signature/v1.0";

const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

/// Files that a folder may have beside its weights, and that are read.
const COMPANIONS: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    #[serde(default)]
    dsse_envelope: Option<Envelope>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    sig: String,
}

#[derive(Deserialize)]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Deserialize)]
struct Subject {
    digest: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Serialization {
    method: String,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
    algorithm: String,
    digest: String,
}

/// The public key of a publisher.
pub struct PublicKey {
    algorithm: &'static dyn VerificationAlgorithm,
    point: Vec<u8>,
}

impl PublicKey {
    /// Reads a public key on the curve P-256 or P-384 from a PEM file.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a file that cannot be read, [`Error::Config`] for one that holds something else.
    pub fn read(file: &Path) -> Result<Self> {
        let bad =
            |problem: &str| Error::Config(format!("--signature-key {}: {problem}", file.display()));
        let bytes =
            read_up_to(file, MOST_BYTES).map_err(|problem| Error::not_found(file, problem))?;
        let der = SubjectPublicKeyInfoDer::from_pem_slice(&bytes)
            .map_err(|_| bad("no public key in PEM form is in it"))?;
        let key =
            SubjectPublicKeyInfoRef::from_der(&der).map_err(|_| bad("the key is malformed"))?;
        let curve = key.algorithm.parameters_oid().ok();
        let curve = curve.filter(|_| key.algorithm.oid == EC_PUBLIC_KEY);
        let algorithm: &'static dyn VerificationAlgorithm = if curve == Some(P256) {
            &ECDSA_P256_SHA256_ASN1
        } else if curve == Some(P384) {
            &ECDSA_P384_SHA384_ASN1
        } else {
            return Err(bad("the key is not one of the curves P-256 and P-384"));
        };
        let point = key.subject_public_key.raw_bytes().to_vec();
        Ok(Self { algorithm, point })
    }
}

/// Verifies that `key` has signed the files that `checkpoint` is read from. `false` if there is no signature: the folder
/// has none, or the model is no folder of safetensors.
///
/// # Errors
/// [`Error::BadModel`] for a signature of another key or form, and for a file that is not what was signed.
pub fn verify(checkpoint: &Checkpoint, key: &PublicKey) -> Result<bool> {
    let Some(folder) = checkpoint.config_file.parent() else {
        return Ok(false);
    };
    let path = folder.join(SIGNATURE);
    let is_folder = checkpoint
        .config_file
        .file_name()
        .is_some_and(|name| name == COMPANIONS[0]);
    if !is_folder || checkpoint.packed().is_some() || !path.exists() {
        return Ok(false);
    }
    let signed = signed_files(&path, key)?;
    let weights = checkpoint.tensors()?;
    let mut files: BTreeSet<PathBuf> = weights
        .names()
        .iter()
        .map(|name| weights.file(name))
        .collect();
    let companions = COMPANIONS.iter().map(|name| folder.join(name));
    files.extend(companions.filter(|file| file.exists()));
    let compare = |file: &PathBuf| {
        let name = file
            .strip_prefix(folder)
            .unwrap_or(file)
            .display()
            .to_string();
        let Some(digest) = signed.get(&name) else {
            return Err(Error::bad_model(
                &path,
                &name,
                "this file is not among those that were signed",
            ));
        };
        let opened = File::open(file).map_err(|problem| Error::not_found(file, problem))?;
        let found = sha256(opened, u64::MAX - 1).map_err(|problem| Error::io(file, problem))?;
        match found == *digest {
            true => Ok(()),
            false => Err(Error::bad_model(
                file,
                "SHA-256",
                "the file is not the one that was signed",
            )),
        }
    };
    // One thread for each file: a large model has a few, and the disk or memory is the limit.
    std::thread::scope(|scope| {
        let compared: Vec<_> = files
            .iter()
            .map(|file| scope.spawn(|| compare(file)))
            .collect();
        let mut compared = compared.into_iter();
        compared.try_for_each(|one| {
            one.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    Ok(true)
}

/// The SHA-256 of each file that `key` has signed, by its name.
fn signed_files(path: &Path, key: &PublicKey) -> Result<BTreeMap<String, String>> {
    let bad = |field: &str, problem: &str| Error::bad_model(path, field, problem);
    let bytes = read_up_to(path, MOST_BYTES).map_err(|problem| Error::io(path, problem))?;
    let bundle: Bundle = serde_json::from_slice(&bytes)
        .map_err(|problem| Error::bad_model(path, "JSON", problem))?;
    if bundle.media_type != BUNDLE {
        return Err(bad("mediaType", "is no Sigstore bundle of version 0.3"));
    }
    let envelope = bundle.dsse_envelope;
    let envelope = envelope.ok_or_else(|| bad("dsseEnvelope", "is missing"))?;
    if envelope.payload_type != PAYLOAD {
        return Err(bad("payloadType", "is no in-toto statement"));
    }
    let decode = |field: &str, text: &str| {
        STANDARD
            .decode(text)
            .map_err(|_| bad(field, "is not base64"))
    };
    let payload = decode("payload", &envelope.payload)?;
    let [signature] = &envelope.signatures[..] else {
        return Err(bad("signatures", "must be one"));
    };
    let signature = decode("sig", &signature.sig)?;
    // What is signed, by DSSE: the lengths before the parts, so that none can pass for another.
    let mut signed = format!("DSSEv1 {} {PAYLOAD} {} ", PAYLOAD.len(), payload.len()).into_bytes();
    signed.extend(&payload);
    let key = UnparsedPublicKey::new(key.algorithm, &key.point);
    if key.verify(&signed, &signature).is_err() {
        return Err(bad(
            "sig",
            "was not made with the key that --signature-key names",
        ));
    }
    let statement: Statement = serde_json::from_slice(&payload)
        .map_err(|problem| Error::bad_model(path, "payload", problem))?;
    if statement.kind != STATEMENT || statement.predicate_type != PREDICATE {
        return Err(bad("predicateType", "is no signature of a model"));
    }
    let Predicate {
        serialization,
        resources,
    } = statement.predicate;
    if serialization.method != "files" || resources.iter().any(|one| one.algorithm != "sha256") {
        return Err(bad("serialization", "is not the SHA-256 of whole files"));
    }
    let mut root = Sha256::new();
    for resource in &resources {
        let digest = digest_of(&resource.digest);
        root.update(digest.ok_or_else(|| bad("digest", "is no SHA-256"))?);
    }
    let root: String = root
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let [subject] = &statement.subject[..] else {
        return Err(bad("subject", "must be one"));
    };
    if subject.digest.get("sha256") != Some(&root) {
        return Err(bad("subject", "its digest is not that of the files"));
    }
    Ok(resources
        .into_iter()
        .map(|one| (one.name, one.digest))
        .collect())
}

/// The bytes of a digest in lower-case hexadecimal.
fn digest_of(text: &str) -> Option<[u8; 32]> {
    let is_lower = text
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if text.len() != 64 || !is_lower {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(digest)
}

fn read_up_to(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(std::io::Error::other("larger than any such file")),
        false => Ok(bytes),
    }
}
