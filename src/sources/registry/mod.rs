//! Downloads a model from a registry of container images: Ollama's, or any other that has the OCI API.
//!
//! The cache has a folder of files for each manifest, and a file for each tag with the SHA-256 of its manifest.

mod client;
pub(super) mod manifest;

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::{Client, Failure};
use manifest::{Blob, CONFIG, INDEX, Manifest, Plan, Problem};

use super::image::{Image, Version, hash_of};
use super::known;
use super::quantized::Method;
use super::safetensors::shard_names;
use super::settings::Settings;
use super::{Freshness, Local, read_json};
use crate::error::{Error, Result};

/// The manifest in the folder of a model; it is written when all files are there.
const MANIFEST: &str = ".manifest.json";
/// The file that a process locks while it fills the folder.
const LOCK: &str = ".lock";
/// The host in the names of Docker Hub's images, and the one that has its API.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");
/// How often the lock is tried, once per second, as for repositories of the hub.
const LOCK_TRIES: usize = 6;

/// Returns the local folder or GGUF file of `image`, downloading what is missing.
///
/// # Errors
/// [`Error::Unavailable`] with advice, or [`Error::BadModel`] for an image without a supported model.
pub fn fetch(image: &Image, settings: &Settings, freshness: Freshness) -> Result<Local> {
    let registry = Registry { image, settings };
    let cached = registry.cached();
    if settings.offline {
        let folder = registry.folder();
        let problem = format!(
            "not in the cache {}, and HF_HUB_OFFLINE is set; unset it, or name a local model",
            folder.display()
        );
        return cached.ok_or_else(|| registry.unavailable(problem));
    }
    let is_fixed = matches!(image.version, Version::Digest(_));
    match cached {
        Some(cached) if freshness == Freshness::Cached || is_fixed => Ok(cached),
        Some(cached) => registry.download().or_else(|error| match error {
            Error::Unavailable(reason) => {
                tracing::warn!(reason, "using the version in the cache");
                Ok(cached)
            }
            other => Err(other),
        }),
        None => registry.download(),
    }
}

/// One version of a model in a registry.
struct Registry<'a> {
    image: &'a Image,
    settings: &'a Settings,
}

impl Registry<'_> {
    /// The address of the registry. Registries on the same machine have no certificates.
    fn base(&self) -> String {
        let Some(host) = &self.image.host else {
            return self.settings.ollama_endpoint.clone();
        };
        if host == DOCKER_HUB.0 {
            return format!("https://{}", DOCKER_HUB.1);
        }
        let name = host.split(':').next().unwrap_or(host);
        let scheme = match ["localhost", "127.0.0.1"].contains(&name) {
            true => "http",
            false => "https",
        };
        format!("{scheme}://{host}")
    }

    /// The cache's folder for registries.
    fn folder(&self) -> PathBuf {
        self.settings.cache.join("registry")
    }

    fn model_folder(&self, hash: &str) -> PathBuf {
        self.folder().join("models").join(hash)
    }

    /// The file with the hash of the manifest that the image's version had when it was downloaded.
    fn reference_file(&self) -> PathBuf {
        let host = self.image.host.as_deref().unwrap_or("ollama");
        // A colon is not allowed in paths everywhere, and a host has no plus sign.
        let mut path = self.folder().join("refs").join(host.replace(':', "+"));
        path.extend(self.image.repository.split('/'));
        match &self.image.version {
            Version::Tag(tag) => path.join("_tags").join(tag),
            Version::Digest(hash) => path.join("_digests").join(hash),
        }
    }

    /// The cached model of this version, if it is complete.
    fn cached(&self) -> Option<Local> {
        let hash = fs::read_to_string(self.reference_file()).ok()?;
        self.complete(hash_of(&format!("sha256:{}", hash.trim()))?)
    }

    /// The model whose manifest has this hash, if all its files are there.
    fn complete(&self, hash: &str) -> Option<Local> {
        let folder = self.model_folder(hash);
        let manifest = Manifest::parse(&fs::read(folder.join(MANIFEST)).ok()?).ok()?;
        let plan = manifest.plan(self.image.name()).ok()?;
        let is_there = |blob: &Blob| has(&folder, blob);
        let has_shards = || {
            let shards = self.shards(&folder, &plan);
            shards.is_ok_and(|shards| shards.iter().all(|blob| is_there(blob)))
        };
        if !(plan.files.iter().all(is_there) && has_shards()) {
            return None;
        }
        Some(match plan.gguf {
            Some(file) => Local::Gguf(folder.join(file)),
            None => Local::Folder(folder),
        })
    }

    /// The weights that the index in the folder names, if the model has an index.
    fn shards<'p>(&self, folder: &Path, plan: &'p Plan) -> Result<Vec<&'p Blob>> {
        if plan.files.iter().all(|file| file.name != INDEX) {
            return Ok(Vec::new());
        }
        let names = shard_names(&folder.join(INDEX))?;
        let blobs = names.iter().map(|name| plan.other(name));
        blobs
            .collect::<std::result::Result<_, _>>()
            .map_err(|problem| self.bad(problem))
    }

    fn download(&self) -> Result<Local> {
        let client = Client::new(&self.base(), &self.image.repository);
        let reference = match &self.image.version {
            Version::Tag(tag) => tag.clone(),
            Version::Digest(hash) => format!("sha256:{hash}"),
        };
        let (bytes, hash) = self.manifest(&client, &reference)?;
        let manifest = Manifest::parse(&bytes).map_err(|problem| self.bad(problem))?;
        let plan = manifest.plan(self.image.name());
        let plan = plan.map_err(|problem| self.bad(problem))?;
        let folder = self.model_folder(&hash);
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let _lock = self.lock(&folder)?;
        for blob in &plan.files {
            self.file(&client, &folder, blob)?;
            if blob.name == CONFIG {
                // Checks the configuration first, to avoid downloading gigabytes of unsupported weights.
                let config = folder.join(CONFIG);
                Method::read(&config, &read_json(&config)?)?;
            }
        }
        for shard in self.shards(&folder, &plan)? {
            self.file(&client, &folder, shard)?;
        }
        write(&folder.join(MANIFEST), &bytes)?;
        write(&self.reference_file(), hash.as_bytes())?;
        self.complete(&hash)
            .ok_or_else(|| self.unavailable("the cache lost files while it was filled"))
    }

    /// The manifest of the image, and its hash; of a list of manifests, the one for this machine.
    fn manifest(&self, client: &Client, reference: &str) -> Result<(Vec<u8>, String)> {
        let fetch = |reference: &str| {
            let fetched = client.manifest(reference);
            fetched.map_err(|failure| self.failed("the manifest", failure))
        };
        let (bytes, hash) = fetch(reference)?;
        let manifest = Manifest::parse(&bytes).map_err(|problem| self.bad(problem))?;
        let own = manifest.for_this_machine();
        match own.map_err(|problem| self.bad(problem))? {
            Some(own) => fetch(&format!("sha256:{own}")),
            None => Ok((bytes, hash)),
        }
    }

    /// Downloads one file into the folder, unless it is there.
    fn file(&self, client: &Client, folder: &Path, blob: &Blob) -> Result<()> {
        if has(folder, blob) {
            return Ok(());
        }
        let part = folder.join(format!(".{}.part", blob.hash));
        let bar = self.settings.progress_bar;
        let fetched = client.download(blob, &folder.join(&blob.name), &part, bar);
        fetched.map_err(|failure| self.failed(&blob.name, failure))
    }

    /// Waits a while for another process that fills the folder.
    fn lock(&self, folder: &Path) -> Result<File> {
        let path = folder.join(LOCK);
        let file = File::create(&path).map_err(|e| Error::io(&path, e))?;
        for _ in 0..LOCK_TRIES {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_secs(1)),
                Err(TryLockError::Error(e)) => return Err(Error::io(&path, e)),
            }
        }
        Err(self.unavailable("another process is fetching it; wait until that has ended"))
    }

    fn bad(&self, (field, problem): Problem) -> Error {
        Error::bad_model(self.image.to_string(), field, problem)
    }

    fn unavailable(&self, problem: impl std::fmt::Display) -> Error {
        Error::Unavailable(format!("{}: {problem}", self.image))
    }

    /// The error for a failed download, in one line with advice.
    fn failed(&self, what: &str, failure: Failure) -> Error {
        let hint = match &failure {
            Failure::Status(401 | 403) => {
                "check the name; an image that is not public cannot be fetched, so download it with other tools and name the file or folder"
            }
            Failure::Status(_) => "check the name and the tag",
            Failure::Wrong(_) => "try again, or name a local model",
            Failure::Network(_) if self.image.host.is_none() => {
                "check the network or OLLAMA_REGISTRY, or name a local model"
            }
            Failure::Network(_) => "check the network and the host, or name a local model",
            Failure::Disk(_) => "check the folder of the cache, which XDG_CACHE_HOME sets",
        };
        // Of other registries nothing is known.
        let typed = self.image.to_string();
        let name = typed.strip_prefix("ollama:");
        let is_missing = matches!(failure, Failure::Status(401 | 404));
        let nearest = name.and_then(known::nearest_in_ollama);
        let meant = nearest.filter(|_| is_missing);
        let meant = meant.map(|known| format!("did you mean ollama:{known}?"));
        let hint = meant.as_deref().unwrap_or(hint);
        let base = self.base();
        self.unavailable(format!(
            "cannot fetch {what} from {base}: {failure}; {hint}"
        ))
    }
}

/// Whether the folder has the file, in its full size. It gets its name only when its content has been verified.
fn has(folder: &Path, blob: &Blob) -> bool {
    let metadata = fs::metadata(folder.join(&blob.name));
    metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() == blob.size)
}

/// Writes a small file, which appears complete or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Another process may write the same file.
    let new = folder.join(format!(".{name}.{}.new", std::process::id()));
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    });
    written.map_err(|e| Error::io(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_registries_on_this_machine_are_asked_without_encryption() {
        let settings = Settings::from_variables(|_| None, false);
        for (text, base) in [
            ("localhost:5000/m", "http://localhost:5000"),
            ("127.0.0.1/m", "http://127.0.0.1"),
            ("127.0.0.1.example.org/m", "https://127.0.0.1.example.org"),
            (
                "registry.example.org:5000/m",
                "https://registry.example.org:5000",
            ),
            ("docker.io/ai/m", "https://registry-1.docker.io"),
        ] {
            let image = &Image::of_oci(text).unwrap();
            let registry = Registry {
                image,
                settings: &settings,
            };
            assert_eq!(registry.base(), base);
        }
    }
}
