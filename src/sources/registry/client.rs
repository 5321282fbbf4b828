//! Requests to a registry: the HTTP API v2 of container images, with the anonymous tokens that registries ask for.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::Response;
use ureq::tls::{TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use super::manifest::{Blob, MANIFESTS};
use crate::sources::hash::{sha256, sha256_of};
use crate::sources::progress::Meter;

/// The most bytes of a manifest: registries accept no longer ones.
const MAX_MANIFEST: u64 = 4 << 20;
/// The most bytes of the response with a token, and of the token.
const MAX_TOKEN: u64 = 64 << 10;
/// How long a server may take to accept a connection, and to send anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// Attempts per file. Each attempt resumes where the last one broke off.
const TRIES: usize = 3;
/// Bytes that are read at once.
const PIECE: usize = 256 << 10;

/// Why something could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The server refused, with this status.
    #[error("the registry answered with status {0}")]
    Status(u16),
    /// No complete answer.
    #[error("{0}")]
    Network(String),
    /// An answer that is not what was asked for.
    #[error("{0}")]
    Wrong(String),
    /// A local file cannot be written.
    #[error("{0}")]
    Disk(#[from] std::io::Error),
}

/// A connection to one repository of a registry.
pub struct Client {
    agent: Agent,
    /// The address of the registry, without a slash at the end.
    base: String,
    repository: String,
    token: RefCell<Option<String>>,
}

impl Client {
    /// A client for `repository` of the registry at `base`.
    pub fn new(base: &str, repository: &str) -> Self {
        let tls = TlsConfig::builder().provider(TlsProvider::Rustls).build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            // Registries redirect to the servers that have the files, which must not see the token.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .http_status_as_error(false)
            // A part of a compressed body could not be resumed.
            .accept_encoding("identity")
            .timeout_connect(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .build();
        Self {
            agent: agent.into(),
            base: base.to_owned(),
            repository: repository.to_owned(),
            token: RefCell::new(None),
        }
    }

    /// The bytes of the manifest with this tag or digest, and their SHA-256.
    pub fn manifest(&self, reference: &str) -> Result<(Vec<u8>, String), Failure> {
        let path = format!("manifests/{reference}");
        let mut response = self.get(&path, &MANIFESTS.join(", "), 0)?;
        if response.status() != 200 {
            return Err(Failure::Status(response.status().as_u16()));
        }
        let bytes = read(&mut response, MAX_MANIFEST)?;
        let hash = sha256_of(&bytes);
        match reference.strip_prefix("sha256:") {
            Some(asked) if asked != hash => Err(Failure::Wrong(format!(
                "the manifest has the digest {hash}"
            ))),
            _ => Ok((bytes, hash)),
        }
    }

    /// Downloads a blob to `path`, resuming what is in `part`, which is beside it.
    pub fn download(
        &self,
        blob: &Blob,
        path: &Path,
        part: &Path,
        progress_bar: bool,
    ) -> Result<(), Failure> {
        for tries_left in (0..TRIES).rev() {
            match self.continue_part(blob, part, progress_bar) {
                Ok(()) => break,
                Err(Failure::Network(problem)) if tries_left > 0 => {
                    tracing::warn!(
                        file = blob.name,
                        problem,
                        "the download broke off; trying again"
                    );
                }
                Err(failure) => return Err(failure),
            }
        }
        let file = File::open(part)?;
        let arrived = file.metadata()?.len();
        if arrived != blob.size || sha256(file, blob.size)? != blob.hash {
            std::fs::remove_file(part)?;
            let (name, size) = (&blob.name, blob.size);
            return Err(Failure::Wrong(format!(
                "{name} arrived damaged ({arrived} of {size} bytes)"
            )));
        }
        // The bytes must be on the disk before the name is, or a power cut could leave a name without its content.
        File::open(part)?.sync_all()?;
        Ok(std::fs::rename(part, path)?)
    }

    /// Downloads the bytes that `part` lacks, but none beyond the size of the blob.
    fn continue_part(&self, blob: &Blob, part: &Path, progress_bar: bool) -> Result<(), Failure> {
        let mut file = OpenOptions::new().create(true).append(true).open(part)?;
        let mut there = file.metadata()?.len();
        if there > blob.size {
            file.set_len(0)?;
            there = 0;
        }
        if there == blob.size {
            return Ok(());
        }
        let path = format!("blobs/sha256:{}", blob.hash);
        let mut response = self.get(&path, "*/*", there)?;
        match response.status().as_u16() {
            206 if there > 0 && starts_at(&response, there) => {}
            // The server sends all of it.
            200 => {
                file.set_len(0)?;
                there = 0;
            }
            206 => {
                return Err(Failure::Wrong(
                    "the registry sent another part than asked for".into(),
                ));
            }
            status => return Err(Failure::Status(status)),
        }
        let mut meter = Meter::new(&blob.name, blob.size, progress_bar);
        meter.start(blob.size);
        meter.resume(there);
        let mut body = response.body_mut().as_reader().take(blob.size - there);
        let mut piece = vec![0; PIECE];
        while there < blob.size {
            let read = body.read(&mut piece).map_err(|e| network(&e))?;
            if read == 0 {
                return Err(Failure::Network(format!("it ended after {there} bytes")));
            }
            file.write_all(&piece[..read])?;
            there += read as u64;
            meter.set(there);
        }
        Ok(())
    }

    /// Requests a path of the repository from byte `start` on, as one of the media types in `accept`. If the registry
    /// asks for a token, gets one and repeats the request.
    fn get(&self, path: &str, accept: &str, start: u64) -> Result<Response<Body>, Failure> {
        let url = format!("{}/v2/{}/{path}", self.base, self.repository);
        let request = || {
            let mut request = self.agent.get(&url).header("Accept", accept);
            if start > 0 {
                request = request.header("Range", format!("bytes={start}-"));
            }
            if let Some(token) = &*self.token.borrow() {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            request.call().map_err(|e| network(&e))
        };
        let response = request()?;
        let challenge = response.headers().get("www-authenticate");
        let challenge = challenge.and_then(|challenge| challenge.to_str().ok());
        let challenge = challenge.and_then(Challenge::parse);
        match challenge.filter(|_| response.status() == 401) {
            Some(challenge) => {
                let token = self.authorize(&challenge)?;
                self.token.replace(Some(token));
                request()
            }
            None => Ok(response),
        }
    }

    /// Gets a token without credentials, as for everything that is public.
    fn authorize(&self, challenge: &Challenge) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct Granted {
            #[serde(alias = "access_token")]
            token: String,
        }
        let starts = |address: &str, scheme: &str| address.starts_with(scheme);
        let is_plain = starts(&challenge.realm, "http://") && starts(&self.base, "http://");
        if !(starts(&challenge.realm, "https://") || is_plain) {
            let problem = "the registry names no https address that gives tokens";
            return Err(Failure::Wrong(problem.into()));
        }
        let scope = format!("repository:{}:pull", self.repository);
        let mut request = self.agent.get(&challenge.realm).query("scope", &scope);
        if let Some(service) = &challenge.service {
            request = request.query("service", service);
        }
        let mut response = request.call().map_err(|e| network(&e))?;
        if response.status() != 200 {
            return Err(Failure::Status(response.status().as_u16()));
        }
        let granted = serde_json::from_slice(&read(&mut response, MAX_TOKEN)?);
        let granted: Granted = granted.map_err(|_| Failure::Wrong("it gave no token".into()))?;
        let is_plain = granted.token.bytes().all(|byte| byte.is_ascii_graphic());
        match is_plain && !granted.token.is_empty() {
            true => Ok(granted.token),
            false => Err(Failure::Wrong("it gave a token that is none".into())),
        }
    }
}

/// What a registry wants in return for a token: the header `WWW-Authenticate: Bearer realm="…",service="…"`.
struct Challenge {
    realm: String,
    service: Option<String>,
}

impl Challenge {
    fn parse(header: &str) -> Option<Self> {
        let (scheme, mut rest) = header.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, None);
        // Values are quoted and may have commas, but no quotes.
        while let Some((key, after)) = rest.split_once("=\"") {
            let (value, after) = after.split_once('"')?;
            match key.trim_matches([',', ' ']) {
                "realm" => realm = Some(value.to_owned()),
                "service" => service = Some(value.to_owned()),
                _ => {}
            }
            rest = after;
        }
        Some(Self {
            realm: realm?,
            service,
        })
    }
}

fn network(error: &dyn std::error::Error) -> Failure {
    Failure::Network(error.to_string().replace('\n', " "))
}

/// Reads a whole body of at most `most` bytes.
fn read(response: &mut Response<Body>, most: u64) -> Result<Vec<u8>, Failure> {
    let body = response.body_mut().with_config().limit(most);
    body.read_to_vec().map_err(|e| network(&e))
}

/// Whether a partial response begins at byte `start`.
fn starts_at(response: &Response<Body>, start: u64) -> bool {
    let range = response.headers().get("content-range");
    let range = range.and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {start}-")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_read_in_any_order() {
        let challenge = |header| {
            let challenge = Challenge::parse(header)?;
            Some((challenge.realm, challenge.service))
        };
        let both = Some(("https://a/t".to_owned(), Some("b, c".to_owned())));
        for header in [
            "Bearer realm=\"https://a/t\",service=\"b, c\"",
            "bearer service=\"b, c\", scope=\"x\", realm=\"https://a/t\"",
        ] {
            assert_eq!(challenge(header), both, "{header}");
        }
        for header in [
            "Basic realm=\"x\"",
            "Bearer",
            "Bearer service=\"b\"",
            "Bearer realm=\"x",
        ] {
            assert_eq!(challenge(header), None, "{header}");
        }
    }
}
