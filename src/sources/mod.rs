//! Where a model comes from. Every source yields the same [`Checkpoint`]: a configuration with the keys of Hugging
//! Face's `config.json`, a tokenizer, and tensors by their Hugging Face names, read as f32 rows on demand.
//!
//! | file | what it holds |
//! |---|---|
//! | `reference.rs`, `suggest.rs`, `known.rs`, `settings.rs` | how users name a model, suggestions for wrong names, and the settings for downloads |
//! | `folder.rs`, `safetensors.rs` | a Hugging Face folder and its weights |
//! | `forms.rs` | unsupported formats, how they are recognised, and what to use instead |
//! | `quantized/` | folders whose matrices are already int8: compressed-tensors and LLM.int8 |
//! | `generation.rs` | how a model wants its tokens chosen |
//! | `packed.rs`, `staging.rs` | a folder of weights that `quantize` has written, and writing such a folder atomically |
//! | `names.rs` | what the tensors are called in each kind of file |
//! | `gguf/`, `parts.rs` | a GGUF file, or one in parts: header, configuration, tokenizer, tensors |
//! | `hub.rs`, `labels.rs`, `demo.rs`, `wheel.rs` | downloads: a Hugging Face repository, the demo model |
//! | `image.rs`, `registry/` | downloads from registries of container images, Ollama's among them |
//! | `mapped.rs`, `floats.rs` | a read-only memory map, and numbers widened to f32 |
//! | `progress.rs`, `hash.rs` | the progress of a download, and its checksum |

mod demo;
mod floats;
mod folder;
pub(crate) mod forms;
pub mod generation;
pub mod gguf;
pub mod hash;
mod hub;
mod image;
mod known;
mod labels;
mod mapped;
pub(crate) mod names;
pub mod packed;
mod parts;
mod progress;
mod quantized;
mod reference;
mod registry;
mod safetensors;
mod settings;
pub mod signature;
pub(crate) mod staging;
mod suggest;
pub mod wheel;

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::int8::matrix::CodeRows;
use generation::GenerationDefaults;

pub use image::Image;
pub use mapped::{Change, Mapped};
pub use reference::Reference;
#[cfg(feature = "fuzzing")]
pub use registry::manifest::Manifest;
pub use settings::{Settings, Token};

/// A checkpoint that has been opened and whose headers have been checked; tensor data is read on demand.
pub struct Checkpoint {
    /// A short name, shown to users and in `/v1/models`, such as `granite-3.3-2b-instruct`.
    pub name: String,
    /// The file that errors about the configuration should name (`…/config.json` or the GGUF file).
    pub config_file: PathBuf,
    /// `config.json`; a GGUF file's metadata is translated to the same keys.
    pub config: serde_json::Value,
    /// End-of-text ids from `generation_config.json`, the configuration or the GGUF metadata.
    pub eos_token_ids: Vec<u32>,
    /// The tokenizer, ready to encode: a byte-level BPE.
    pub tokenizer: tokenizers::Tokenizer,
    /// How the model wants its tokens chosen.
    pub generation: GenerationDefaults,
    /// The model's own chat template, where the source has one.
    pub chat_template: Option<String>,
    /// The weights.
    pub contents: Contents,
}

/// The weights of a checkpoint, in the form in which they were found.
pub enum Contents {
    /// As they were published, in floats, GGUF blocks or another quantizer's codes.
    Original(Box<dyn Tensors>),
    /// As `microgranite quantize` has packed them, ready for the kernels. The original weights are not there.
    Packed(packed::Packed),
}

impl Checkpoint {
    /// The original weights.
    ///
    /// # Errors
    /// [`Error::BadModel`] for a packed model, which has none.
    pub fn tensors(&self) -> Result<&dyn Tensors> {
        match &self.contents {
            Contents::Original(tensors) => Ok(tensors.as_ref()),
            Contents::Packed(packed) => {
                let problem = "are packed at eight bits; where float weights are needed, name the checkpoint they were made from";
                Err(Error::bad_model(
                    packed.file().path(),
                    "the weights",
                    problem,
                ))
            }
        }
    }

    /// The weights of a packed model; `None` for another.
    pub const fn packed(&self) -> Option<&packed::Packed> {
        match &self.contents {
            Contents::Packed(packed) => Some(packed),
            Contents::Original(_) => None,
        }
    }

    /// A SHA-256 that identifies the checkpoint without reading its weights: over the configuration and what the
    /// headers say of the tensors. A packed model's also covers the checksums of its weights, and so every bit of them.
    pub fn digest(&self) -> String {
        let mut parts = vec![self.config.to_string()];
        match &self.contents {
            Contents::Packed(packed) => {
                // Recorded accuracy measurements do not change the weights.
                let mut made = packed.quantization.clone();
                made["evaluations"] = serde_json::json!([]);
                parts.push(made.to_string());
            }
            Contents::Original(tensors) => parts.extend(tensors.names().iter().map(|name| {
                let (dtype, shape) = (tensors.dtype(name), tensors.shape(name));
                format!("{name} {dtype:?} {shape:?}")
            })),
        }
        hash::sha256_of(parts.join("\n").as_bytes())
    }

    /// The ids of each document, without beginning- and end-of-text tokens; truncated to `most` ids in all.
    ///
    /// # Errors
    /// [`Error::BadModel`] when the tokenizer fails on a document, or returns an id without a row in the embedding.
    pub fn token_ids(&self, documents: &[String], most: usize) -> Result<Vec<Vec<u32>>> {
        let rows = self.config["vocab_size"].as_f64().unwrap_or(f64::INFINITY);
        let mut left = most;
        let mut all = Vec::new();
        for document in documents {
            let encoding = self.tokenizer.encode(document.as_str(), false);
            let encoding =
                encoding.map_err(|e| Error::bad_model(&self.config_file, "tokenizer", e))?;
            let ids = encoding.get_ids();
            let ids = &ids[..ids.len().min(left)];
            if let Some(&id) = ids.iter().find(|&&id| f64::from(id) >= rows) {
                let token = self.tokenizer.id_to_token(id).unwrap_or_default();
                let problem = format!(
                    "the text has the token {token:?} (id {id}), for which the embedding of {rows} rows has none"
                );
                return Err(Error::bad_model(&self.config_file, "vocab_size", problem));
            }
            left -= ids.len();
            all.push(ids.to_vec());
        }
        Ok(all)
    }
}

/// Tensors by their Hugging Face names (`model.layers.0.self_attn.q_proj.weight`), whatever the file calls them.
///
/// Implementations have validated every name, dtype, shape and byte range against the file when they are constructed,
/// and present rows in Hugging Face's order (GGUF's permuted Q and K rows are restored, and its gates and ups joined).
pub trait Tensors: Send + Sync {
    /// The file that holds `name`, for error messages (the index or folder where `name` is absent).
    fn file(&self, name: &str) -> PathBuf;

    /// The shape of `name`, or `None` if there is no such tensor.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// How the file stores `name`, such as `bf16` or `q8_0`, or `mixed` if some rows differ from others; `None` if there is no such tensor or no file behind it.
    fn dtype(&self, name: &str) -> Option<&'static str> {
        let _ = name;
        None
    }

    /// Reads rows `rows` of the tensor into `out`, widened to f32.
    ///
    /// A tensor `[n, k]` has `n` rows of `k` values, and one with more dimensions as many rows as their product without
    /// the last; a vector is one row. `out` holds exactly `rows.len() · k` values.
    ///
    /// # Errors
    /// [`crate::error::Error::BadModel`] when the tensor is absent or a value is not finite.
    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// Whether `name` is stored as int8 codes, which are used unchanged.
    fn has_codes(&self, name: &str) -> bool {
        let _ = name;
        false
    }

    /// Whether the codes of `name` have zero points.
    fn has_zero_points(&self, name: &str) -> bool {
        let _ = name;
        false
    }

    /// Reads rows `rows` of a tensor that [`Tensors::has_codes`], as they are stored.
    ///
    /// # Errors
    /// [`crate::error::Error::Internal`] when it has no codes, or not these rows.
    fn read_codes(&self, name: &str, rows: Range<usize>, out: CodeRows<'_>) -> Result<()> {
        let _ = (rows, out);
        Err(Error::Internal(format!("{name} is not stored as codes")))
    }

    /// The method that produced the codes, for messages; `None` if all tensors are floats or GGUF blocks.
    fn quantization(&self) -> Option<&'static str> {
        None
    }

    /// Every tensor name, in a stable order.
    fn names(&self) -> Vec<String>;

    /// Bytes the tensors take in the file.
    fn stored_bytes(&self) -> u64;
}

/// A model on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// A folder in Hugging Face's layout.
    Folder(PathBuf),
    /// A GGUF file, or the first part of one in parts.
    Gguf(PathBuf),
}

/// Whether a cached copy may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// A cached copy is used as it is, so that a restart neither needs the network nor changes the model.
    Cached,
    /// The hub or registry is asked for the current commit of the branch or version of the tag, if it can be reached.
    Newest,
}

/// Opens the model that `reference` names, downloading it first if necessary.
///
/// # Errors
/// One line that names the file and the field, or says what to do when a download fails.
pub fn open(reference: &Reference, settings: &Settings) -> Result<Checkpoint> {
    let checkpoint = match fetch(reference, settings, Freshness::Cached)? {
        Local::Folder(path) => folder::open(&path)?,
        Local::Gguf(path) => gguf::open(&path)?,
    };
    // Cached folders are named after a commit, so the model keeps the name from the reference.
    let name = match reference {
        Reference::Folder(_) | Reference::Gguf(_) => return Ok(checkpoint),
        Reference::Hub { repo, .. } => repo.rsplit('/').next().unwrap_or(repo).to_owned(),
        Reference::Image(image) => image.name().to_owned(),
        Reference::Demo => reference.to_string(),
    };
    Ok(Checkpoint { name, ..checkpoint })
}

/// Finds the model that `reference` names on this machine, downloading it first if necessary.
///
/// # Errors
/// [`crate::error::Error::Unavailable`] when it cannot be downloaded, with advice; [`Error::NotFound`] for a path where
/// there is nothing.
pub fn fetch(reference: &Reference, settings: &Settings, freshness: Freshness) -> Result<Local> {
    match reference {
        Reference::Folder(path) | Reference::Gguf(path) if !path.exists() => {
            Err(suggest::not_there(path))
        }
        Reference::Folder(path) => Ok(match folder::only_gguf(path) {
            Some(file) => Local::Gguf(file),
            None => Local::Folder(path.clone()),
        }),
        Reference::Gguf(path) => Ok(Local::Gguf(path.clone())),
        Reference::Hub {
            repo,
            revision,
            label,
        } => hub::fetch(repo, revision, label.as_deref(), settings, freshness),
        Reference::Image(image) => registry::fetch(image, settings, freshness),
        Reference::Demo => demo::fetch(settings).map(Local::Gguf),
    }
}

impl Local {
    /// The model's folder or file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::Gguf(path) => path,
        }
    }
}

/// Checks the arguments of [`Tensors::read_rows`] and returns the length of a row.
fn check_rows(
    file: &Path,
    name: &str,
    shape: &[usize],
    rows: &Range<usize>,
    out: usize,
) -> Result<usize> {
    let Some((&k, leading)) = shape.split_last() else {
        let problem = "is a single number, which has no rows";
        return Err(Error::bad_model(file, name, problem));
    };
    // Files are checked so that the product of all dimensions fits.
    let n: usize = leading.iter().product();
    if rows.start > rows.end || rows.end > n || out != rows.len() * k {
        let problem = format!("rows {rows:?} of {name} {shape:?} were asked for in {out} values");
        return Err(Error::Internal(problem));
    }
    Ok(k)
}

/// The error for the first value of `values` that is infinite or not a number. `values` are rows of `k`, from `first_row` on.
fn not_finite(file: &Path, name: &str, first_row: usize, k: usize, values: &[f32]) -> Error {
    let position = values.iter().position(|value| !value.is_finite());
    let position = position.unwrap_or_default();
    let problem = format!(
        "row {}, column {} is {}, not a finite number",
        first_row + position / k,
        position % k,
        values[position]
    );
    Error::bad_model(file, name, problem)
}

/// Reads a JSON file that belongs to a model.
fn read_json(path: &Path) -> Result<serde_json::Value> {
    let bytes = std::fs::read(path).map_err(|e| Error::not_found(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::bad_model(path, "JSON", e))
}
