//! What an image consists of, and which of its files are the model.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::sources::image::{hash_of, is_plain};
use crate::sources::labels;

pub const CONFIG: &str = "config.json";
pub const INDEX: &str = "model.safetensors.index.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";
/// Downloaded if the image has them.
const OPTIONAL: [&str; 3] = [
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

/// The media types of manifests and of lists of them, which a registry is asked for.
pub const MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// The layer that is the GGUF file of a model of Ollama's.
const OLLAMA_MODEL: &str = "application/vnd.ollama.image.model";
/// A layer that changes such a model.
const OLLAMA_ADAPTER: &str = "application/vnd.ollama.image.adapter";
/// The annotations that name the file in a layer: of ORAS and most others, and of ModelPack.
const TITLES: [&str; 2] = ["org.opencontainers.image.title", "org.cncf.model.filepath"];
/// The annotation of a layer that is a packed folder.
const UNPACK: &str = "io.deis.oras.content.unpack";

/// The most layers of an image, and manifests in a list.
const MAX_LAYERS: usize = 1024;
/// The most bytes of a file: far beyond any model that fits a machine.
const MAX_FILE: u64 = 1 << 40;
/// The most characters of a file's name.
const MAX_NAME: usize = 255;

/// A manifest, or a list of manifests for several platforms.
#[derive(Debug, Deserialize)]
pub struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
    #[serde(default)]
    manifests: Vec<Listed>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

/// A file of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// A plain name, without folders.
    pub name: String,
    /// Its SHA-256.
    pub hash: String,
    /// Its exact size.
    pub size: u64,
}

/// The files of an image that are the model.
#[derive(Debug)]
pub struct Plan {
    /// The files to download, weights last.
    pub files: Vec<Blob>,
    /// The GGUF file, or the first part of it; `None` for a folder of safetensors.
    pub gguf: Option<String>,
    /// Other files, among them those that the index of a folder names.
    others: BTreeMap<String, Blob>,
}

/// A field of a manifest, and what is wrong with it.
pub type Problem = (&'static str, String);

impl Manifest {
    /// Parses a manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|e| ("manifest", format!("is invalid: {e}")))?;
        for (field, count) in [
            ("layers", manifest.layers.len()),
            ("manifests", manifest.manifests.len()),
        ] {
            if count > MAX_LAYERS {
                return Err((
                    field,
                    format!("has {count} entries, more than {MAX_LAYERS}"),
                ));
            }
        }
        Ok(manifest)
    }

    /// The SHA-256 of the manifest for this machine, if this is a list of manifests.
    pub fn for_this_machine(&self) -> Result<Option<&str>, Problem> {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let is_own = |listed: &&Listed| {
            let own = |platform: &Platform| {
                platform.os == "linux" && platform.architecture == architecture
            };
            listed.platform.as_ref().is_some_and(own)
        };
        let all = &self.manifests;
        let of_any = || all.iter().find(|listed| listed.platform.is_none());
        match all.iter().find(is_own).or_else(of_any) {
            Some(listed) => match hash_of(&listed.digest) {
                Some(hash) => Ok(Some(hash)),
                None => Err(("manifests", "has a digest that is no SHA-256".into())),
            },
            None if all.is_empty() => Ok(None),
            None => Err(("manifests", format!("has none for linux/{architecture}"))),
        }
    }

    /// Chooses the files of the model: the GGUF layer of an image of Ollama's, or else the named files of a folder of
    /// safetensors or of one GGUF file. A GGUF layer without a name gets `name`.
    pub fn plan(&self, name: &str) -> Result<Plan, Problem> {
        let gguf = format!("{name}.gguf");
        let has = |kind: &str| self.layers.iter().any(|layer| layer.media_type == kind);
        if has(OLLAMA_ADAPTER) {
            return Err((
                "layers",
                "has an adapter (LoRA), which is not supported".into(),
            ));
        }
        let mut files: BTreeMap<String, Blob> = BTreeMap::new();
        let mut has_archives = false;
        for layer in &self.layers {
            let is_gguf = layer.media_type == OLLAMA_MODEL || layer.media_type.contains("gguf");
            let title = match layer.title() {
                None if is_gguf => gguf.clone(),
                None => {
                    has_archives |= layer.media_type.contains("tar");
                    continue;
                }
                Some(_) if layer.is_archive() => {
                    has_archives = true;
                    continue;
                }
                Some(title) if is_name(title) => title.to_owned(),
                // Files in folders are no part of the models that are looked for.
                Some(_) => continue,
            };
            let blob = layer.blob(title)?;
            if let Some(other) = files.insert(blob.name.clone(), blob) {
                return Err(("layers", format!("has {} twice", other.name)));
            }
        }
        match Plan::of(files)? {
            Some(plan) => Ok(plan),
            None if has_archives => Err((
                "layers",
                "has its files in archives (tar), which are not read; unpack the image and name the folder or file"
                    .into(),
            )),
            None => Err((
                "layers",
                "has neither config.json with safetensors weights nor a GGUF file".into(),
            )),
        }
    }
}

impl Layer {
    /// The name of the file in the layer.
    fn title(&self) -> Option<&str> {
        let annotations = self.annotations.as_ref()?;
        let mut titles = TITLES.iter();
        let title = titles.find_map(|title| annotations.get(*title))?;
        Some(title.strip_prefix("./").unwrap_or(title))
    }

    /// Whether the layer is an archive of the file or folder that it names.
    fn is_archive(&self) -> bool {
        let annotations = self.annotations.as_ref();
        let is_packed =
            annotations.is_some_and(|all| all.get(UNPACK).is_some_and(|on| on == "true"));
        let is_model_pack = self.media_type.starts_with("application/vnd.cncf.model.");
        is_packed || is_model_pack && self.media_type.contains(".tar")
    }

    fn blob(&self, name: String) -> Result<Blob, Problem> {
        let hash = hash_of(&self.digest);
        let hash = hash.ok_or_else(|| {
            (
                "layers",
                format!("has a digest of {name} that is no SHA-256"),
            )
        })?;
        if !(1..=MAX_FILE).contains(&self.size) {
            return Err((
                "layers",
                format!("has a size of {name} that is no file's: {}", self.size),
            ));
        }
        Ok(Blob {
            name,
            hash: hash.to_owned(),
            size: self.size,
        })
    }
}

impl Plan {
    fn of(mut files: BTreeMap<String, Blob>) -> Result<Option<Self>, Problem> {
        let weights = [WEIGHTS, INDEX]
            .into_iter()
            .find(|name| files.contains_key(*name));
        let (wanted, gguf): (Vec<String>, Option<String>) = match weights {
            Some(weights) if files.contains_key(CONFIG) => {
                let optional = OPTIONAL
                    .into_iter()
                    .filter(|name| files.contains_key(*name));
                let all = optional.chain([CONFIG, TOKENIZER, weights]);
                (all.map(str::to_owned).collect(), None)
            }
            _ => {
                let has = |name: &str| files.contains_key(name);
                let models = labels::models(files.keys().map(String::as_str));
                let whole = labels::whole(&models, has);
                let best = match (labels::best(&whole), models.first()) {
                    (Some(best), _) => best,
                    // Of none are all parts there; what is missing is named below.
                    (None, Some(first)) if whole.is_empty() => first,
                    (None, Some(_)) => {
                        let there = labels::listed(&models);
                        let problem =
                            format!("has GGUF files of types that cannot be read ({there})");
                        return Err(("layers", problem));
                    }
                    (None, None) => return Ok(None),
                };
                (labels::files_of(best), Some(best.to_owned()))
            }
        };
        let mut chosen = Vec::new();
        for name in wanted {
            let file = files.remove(&name);
            chosen.push(file.ok_or_else(|| ("layers", format!("has no {name}")))?);
        }
        Ok(Some(Self {
            files: chosen,
            gguf,
            others: files,
        }))
    }

    /// The file `name`, which the index of a folder names.
    pub fn other(&self, name: &str) -> Result<&Blob, Problem> {
        let missing = || ("layers", format!("has no {name}, which {INDEX} names"));
        self.others.get(name).ok_or_else(missing)
    }
}

/// Whether the name of a file can be one in the cache: a plain one, and not that of one of the cache's own files.
fn is_name(title: &str) -> bool {
    is_plain(title) && !title.starts_with('.') && (1..=MAX_NAME).contains(&title.len())
}
