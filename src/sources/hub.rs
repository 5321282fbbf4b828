//! Downloads a repository from the Hugging Face hub into the cache that Hugging Face's own tools share.

use std::fs::File;
use std::path::{Path, PathBuf};

use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::forms::Form;
use super::hash::sha256;
use super::known;
use super::labels;
use super::progress::Meter;
use super::quantized::Method;
use super::reference::{Reference, is_gguf};
use super::safetensors::shard_names;
use super::settings::Settings;
use super::signature;
use super::{Freshness, Local, read_json};
use crate::error::{Error, Result};

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Downloaded if the repository has them. They come before the weights, so that a cache with the weights is complete.
const OPTIONAL: [&str; 4] = [
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    signature::SIGNATURE,
];

/// Attempts per file. Each attempt resumes where the last one broke off.
const TRIES: usize = 3;

/// Returns the local folder or GGUF file of `repo` at `revision`, downloading what is missing. With a `label` it is the
/// GGUF file of that name or quantization; without one it is the folder of safetensors, or else the best GGUF file.
///
/// # Errors
/// [`Error::Unavailable`] with advice, or [`Error::BadModel`] for a repository without a supported model.
pub fn fetch(
    repo: &str,
    revision: &str,
    label: Option<&str>,
    settings: &Settings,
    freshness: Freshness,
) -> Result<Local> {
    let hub = Hub {
        repo,
        revision,
        label,
        settings,
    };
    let cached = hub.cached();
    if settings.offline {
        let cache = settings.hub_cache.display();
        let problem = format!(
            "not in the cache {cache}, and HF_HUB_OFFLINE is set; unset it, or name a local model"
        );
        return cached.ok_or_else(|| hub.unavailable(problem));
    }
    match cached {
        Some(cached) if freshness == Freshness::Cached => Ok(cached),
        Some(cached) => hub.download().or_else(|error| match error {
            Error::Unavailable(reason) => {
                tracing::warn!(reason, "using the revision in the cache");
                Ok(cached)
            }
            other => Err(other),
        }),
        None => hub.download(),
    }
}

/// One repository at one revision.
struct Hub<'a> {
    repo: &'a str,
    revision: &'a str,
    label: Option<&'a str>,
    settings: &'a Settings,
}

impl Hub<'_> {
    /// The cached model of this revision, if it is complete.
    fn cached(&self) -> Option<Local> {
        let named = self.at(self.revision);
        let refs = self
            .settings
            .hub_cache
            .join(named.folder_name())
            .join("refs");
        // For a branch or tag, the cache has a file with its commit; a commit stands for itself.
        let commit = std::fs::read_to_string(refs.join(self.revision));
        let commit = commit.unwrap_or_else(|_| self.revision.into());
        let commit = Some(commit.trim()).filter(|commit| is_commit(commit))?;
        complete(&self.snapshot(commit), self.label)
    }

    /// Downloads the files of a model, all from the commit that the revision points to at the start.
    fn download(&self) -> Result<Local> {
        let api = self.api().map_err(|e| self.failed("anything", &e))?;
        let info = api.repo(self.at(self.revision)).info();
        let info = info.map_err(|e| self.failed("the list of files", &e))?;
        if !is_commit(&info.sha) {
            return Err(self.unavailable("the hub named no commit for the revision"));
        }
        let source = api.repo(self.at(&info.sha));
        let snapshot = self.snapshot(&info.sha);
        for name in self.wanted(&info)? {
            self.file(&source, &snapshot, &name)?;
            if name == CONFIG {
                // Checks the configuration first, to avoid downloading gigabytes of unsupported weights.
                let config = snapshot.join(CONFIG);
                Method::read(&config, &read_json(&config)?)?;
            }
            if name == INDEX {
                for shard in shard_names(&snapshot.join(INDEX))? {
                    self.file(&source, &snapshot, &shard)?;
                }
            }
        }
        let cache = Cache::new(self.settings.hub_cache.clone());
        let reference = cache.repo(self.at(self.revision)).create_ref(&info.sha);
        reference.map_err(|e| Error::io(&self.settings.hub_cache, e))?;
        complete(&snapshot, self.label)
            .ok_or_else(|| self.unavailable("the cache lost files while it was filled"))
    }

    fn api(&self) -> std::result::Result<Api, ApiError> {
        ApiBuilder::from_cache(Cache::new(self.settings.hub_cache.clone()))
            .with_endpoint(self.settings.hub_endpoint.clone())
            .with_token(
                self.settings
                    .hub_token
                    .as_ref()
                    .map(|token| token.0.clone()),
            )
            // The crate's own retries misplace a resumed file when the connection breaks before its first byte.
            .with_retries(0)
            .build()
    }

    fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repo.into(), RepoType::Model, revision.into())
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        let cache = Cache::new(self.settings.hub_cache.clone());
        cache.repo(self.at(commit)).pointer_path(commit)
    }

    /// Chooses the files to download, weights last: a model in safetensors, unless a GGUF file is named, else one GGUF
    /// file, with all of its parts.
    fn wanted(&self, info: &RepoInfo) -> Result<Vec<String>> {
        let files: Vec<&str> = info.siblings.iter().map(|f| f.rfilename.as_str()).collect();
        let has = |name: &str| files.contains(&name);
        let weights = [WEIGHTS, INDEX].into_iter().find(|name| has(name));
        if let (Some(weights), true, None) = (weights, has(CONFIG), self.label) {
            let mut wanted: Vec<&str> = OPTIONAL.into_iter().filter(|name| has(name)).collect();
            // Absent files are requested too: the hub's answer then says which one is missing.
            wanted.extend([CONFIG, TOKENIZER, weights]);
            return Ok(wanted.into_iter().map(str::to_owned).collect());
        }
        let ggufs = labels::models(files.iter().copied());
        let refused = |problem| Err(Error::bad_model(self.to_string(), "files", problem));
        let whole = |file: &str| {
            let parts = labels::files_of(file);
            match parts.iter().find(|part| !has(part)) {
                Some(missing) => refused(format!("holds {file}, but not its part {missing}")),
                None => Ok(parts),
            }
        };
        if let Some(label) = self.label {
            return match (labels::named(&ggufs, label), ggufs.is_empty()) {
                (Some(file), _) => whole(file),
                (None, true) => refused(format!("holds no .gguf file, and so none of {label}")),
                (None, false) => {
                    let there = labels::listed(&ggufs);
                    refused(format!("holds no .gguf file of {label}; there are {there}"))
                }
            };
        }
        let complete = labels::whole(&ggufs, has);
        match (labels::best(&complete), ggufs.first()) {
            (Some(file), _) => {
                if ggufs.len() > 1 {
                    let (count, label) = (ggufs.len(), labels::label(file));
                    let there = labels::listed(&ggufs);
                    tracing::info!(
                        "{self} holds {count} .gguf files ({there}): taking {label}; {self}:LABEL takes another"
                    );
                }
                whole(file)
            }
            // Of none are all parts there.
            (None, Some(first)) if complete.is_empty() => whole(first),
            (None, Some(_)) => {
                let there = labels::listed(&ggufs);
                refused(format!(
                    "holds .gguf files of types that cannot be read ({there}); take a repository with a Q8_0 file"
                ))
            }
            (None, None) => match Form::by_files(&files) {
                Some((form, file)) => Err(form.refusal(self.to_string(), file)),
                None if files.iter().any(|file| is_gguf(Path::new(file))) => refused(
                    "holds .gguf files in folders alone; download one and name the file".into(),
                ),
                None => refused(
                    "holds neither config.json with safetensors weights nor a .gguf file".into(),
                ),
            },
        }
    }

    /// Downloads one file into the snapshot, unless it is there.
    fn file(&self, source: &ApiRepo, snapshot: &Path, name: &str) -> Result<()> {
        if snapshot.join(name).exists() {
            return Ok(());
        }
        for tries_left in (0..TRIES).rev() {
            let mut meter = Meter::new(name, 0, self.settings.progress_bar);
            match source.download_with_progress(name, &mut meter) {
                Ok(path) => return self.check(&path, meter.total()),
                Err(error) if tries_left > 0 && status(&error).is_none() => {
                    tracing::warn!(file = name, %error, "the download broke off; trying again");
                }
                Err(error) => return Err(self.failed(name, &error)),
            }
        }
        Ok(())
    }

    /// Compares a downloaded file with the size and, for large files, the SHA-256 that the hub announced.
    fn check(&self, path: &Path, size: u64) -> Result<()> {
        let blob = path.canonicalize().map_err(|e| Error::io(path, e))?;
        let file = File::open(&blob).map_err(|e| Error::io(&blob, e))?;
        let arrived = file.metadata().map_err(|e| Error::io(&blob, e))?.len();
        // The cache names a file by its hash: SHA-256 for large ones (64 digits), git's own for small ones.
        let name = blob.file_name().unwrap_or_default().to_string_lossy();
        let is_sha256 = name.len() == 64 && is_hex(&name);
        let intact = arrived == size
            && (!is_sha256 || sha256(file, size).map_err(|e| Error::io(&blob, e))? == *name);
        if intact {
            return Ok(());
        }
        for damaged in [path, blob.as_path()] {
            std::fs::remove_file(damaged).map_err(|e| Error::io(damaged, e))?;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Err(self.unavailable(format!(
            "{name} arrived damaged ({arrived} of {size} bytes); try again"
        )))
    }

    fn unavailable(&self, problem: impl std::fmt::Display) -> Error {
        Error::Unavailable(format!("{self}: {problem}"))
    }

    /// The error for a failed download, in one line with advice.
    fn failed(&self, what: &str, error: &ApiError) -> Error {
        // The hub says that a repository is not public where there is none.
        let is_missing = matches!(status(error), Some(401 | 404));
        let nearest = known::nearest_repository(self.repo).filter(|_| is_missing);
        let meant = nearest.map(|known| format!("did you mean hf:{known}?"));
        let hint = match (error, status(error)) {
            (ApiError::LockAcquisition(_), _) => {
                "another process is fetching it; wait until that has ended"
            }
            (_, Some(_)) => {
                "check the name and the revision; a repository that is not public needs HF_TOKEN"
            }
            (_, None) => "check the network or HF_ENDPOINT, or name a local model",
        };
        let hint = meant.as_deref().unwrap_or(hint);
        let endpoint = &self.settings.hub_endpoint;
        let error = error.to_string().replace('\n', " ");
        self.unavailable(format!(
            "cannot fetch {what} from {endpoint}: {error}; {hint}"
        ))
    }
}

impl std::fmt::Display for Hub<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let reference = Reference::Hub {
            repo: self.repo.into(),
            revision: self.revision.into(),
            label: self.label.map(str::to_owned),
        };
        reference.fmt(f)
    }
}

/// The HTTP status of an answer, or `None` when there was no answer. The crate exposes it only in the message.
fn status(error: &ApiError) -> Option<u16> {
    let text = error.to_string();
    let (_, status) = text.split_once("http status: ")?;
    status.get(..3)?.parse().ok()
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether `text` is a full commit id, which is also safe as the name of a folder.
fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

/// The model in a snapshot, if all its files are there. If no GGUF file is named, the best one downloaded.
fn complete(snapshot: &Path, label: Option<&str>) -> Option<Local> {
    let has = |name: &str| snapshot.join(name).exists();
    let has_shards = || {
        let shards = shard_names(&snapshot.join(INDEX));
        shards.is_ok_and(|shards| shards.iter().all(|shard| has(shard)))
    };
    let has_folder = || has(CONFIG) && has(TOKENIZER) && (has(WEIGHTS) || has_shards());
    if label.is_none() && has_folder() {
        return Some(Local::Folder(snapshot.into()));
    }
    let entries = std::fs::read_dir(snapshot).ok()?.flatten();
    let names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| has(name))
        .collect();
    let ggufs = labels::models(names.iter().map(String::as_str));
    let ggufs = labels::whole(&ggufs, has);
    let file = match label {
        Some(label) => labels::named(&ggufs, label),
        None => labels::best(&ggufs),
    };
    Some(Local::Gguf(snapshot.join(file?)))
}
