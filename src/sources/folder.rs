//! A folder in Hugging Face's layout: `config.json`, `tokenizer.json` and safetensors.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::{DecoderWrapper, ModelWrapper, Tokenizer};

use super::forms::Form;
use super::generation::GenerationDefaults;
use super::labels;
use super::packed::{self, Packed};
use super::quantized::{Method, Quantized};
use super::safetensors::Shards;
use super::{Checkpoint, Contents, read_json};
use crate::error::{Error, Result};

/// Opens the folder at `path`.
///
/// # Errors
/// [`Error::NotFound`] when it or a file it needs is missing, [`Error::BadModel`] when a file is inconsistent.
pub fn open(path: &Path) -> Result<Checkpoint> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::not_found(path, e))?;
    if !metadata.is_dir() {
        return Err(not_a_folder(path));
    }
    let config_file = path.join("config.json");
    if !config_file.exists() {
        return Err(missing_config(path));
    }
    let mut config = read_json(&config_file)?;
    if !config.is_object() {
        return Err(Error::bad_model(&config_file, "JSON", "is not an object"));
    }
    let contents = match packed::is_packed(path) {
        true => Contents::Packed(Packed::open(path)?),
        false => Contents::Original(match Method::read(&config_file, &config)? {
            Some(method) => Box::new(Quantized::new(weights(path, true)?, method)?),
            None => Box::new(weights(path, false)?),
        }),
    };
    // It describes how the weights are stored, which has been read by now, and nothing about the model.
    if let Some(fields) = config.as_object_mut() {
        fields.remove("quantization_config");
    }
    let (eos_token_ids, generation) = generation(path, &config_file, &config)?;
    Ok(Checkpoint {
        name: name(path),
        eos_token_ids,
        generation,
        tokenizer: tokenizer(&path.join("tokenizer.json"))?,
        chat_template: chat_template(path)?,
        contents,
        config_file,
        config,
    })
}

/// The GGUF file in a folder that holds one and no other model, or the first part of it.
pub fn only_gguf(folder: &Path) -> Option<PathBuf> {
    if folder.join("config.json").exists() {
        return None;
    }
    let names = file_names(folder);
    match labels::models(names.iter().map(String::as_str))[..] {
        [only] => Some(folder.join(only)),
        _ => None,
    }
}

/// The folder's own name, by convention the model's.
fn name(path: &Path) -> String {
    let absolute = path.canonicalize().unwrap_or_else(|_| path.into());
    let name = absolute.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The error for a file where a folder was expected: part of a model folder, or an export for another program.
fn not_a_folder(file: &Path) -> Error {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    if let Some((form, _)) = Form::by_files(&[&name]) {
        return form.refusal(file, "format");
    }
    let problem = "is neither a folder nor a .gguf file";
    if !name.ends_with(".safetensors") {
        return Error::not_found(file, problem);
    }
    let folder = file.parent().filter(|folder| folder != &Path::new(""));
    let folder = folder.unwrap_or(Path::new("."));
    let problem = format!(
        "holds weights alone; name the folder with its config.json and tokenizer.json: {}",
        folder.display()
    );
    Error::bad_model(file, "format", problem)
}

/// The error for a folder without `config.json`.
fn missing_config(folder: &Path) -> Error {
    let file = folder.join("config.json");
    let names = file_names(folder);
    if let Some(gguf) = first_with_extension(&names, &["gguf"]) {
        let path = folder.join(gguf);
        let problem = format!(
            "not found; to open the GGUF file, name it: {}",
            path.display()
        );
        return Error::not_found(file, problem);
    }
    if let Some(error) = other_form(folder, &names) {
        return error;
    }
    let problem = "not found; a model folder holds config.json, tokenizer.json and *.safetensors";
    Error::not_found(file, problem)
}

/// The single file if there is one, as Hugging Face prefers it, else what the index lists.
fn weights(folder: &Path, integers: bool) -> Result<Shards> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Shards::open(&single, integers);
    }
    let index = folder.join("model.safetensors.index.json");
    if index.exists() {
        return Shards::open_index(&index, integers);
    }
    let names = file_names(folder);
    let problem = match first_with_extension(&names, &["safetensors", "gguf"]) {
        Some(other) if other.ends_with(".gguf") => {
            let path = folder.join(other);
            format!(
                "not found; to open the GGUF file, name it: {}",
                path.display()
            )
        }
        Some(other) => format!(
            "not found, nor model.safetensors.index.json; if {other} is all of the weights, call it model.safetensors"
        ),
        None => "not found, nor model.safetensors.index.json".into(),
    };
    let error = || Error::not_found(&single, problem);
    Err(other_form(folder, &names).unwrap_or_else(error))
}

/// The error for a folder that holds a model in an unsupported format.
fn other_form(folder: &Path, names: &[String]) -> Option<Error> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (form, name) = Form::by_files(&names)?;
    Some(form.refusal(folder.join(name), "format"))
}

/// The names of a folder's files, and of those one level below, where exports keep their parts.
fn file_names(folder: &Path) -> Vec<String> {
    let list = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names = Vec::new();
    for entry in list(folder) {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let inner = list(&entry.path()).filter_map(|inner| inner.file_name().into_string().ok());
        names.extend(inner.map(|inner| format!("{name}/{inner}")));
        names.push(name);
    }
    names
}

/// The alphabetically first file, in the folder itself, whose extension is one of `extensions`.
fn first_with_extension<'n>(names: &'n [String], extensions: &[&str]) -> Option<&'n String> {
    let has_extension = |name: &&String| {
        let extension = Path::new(name).extension().unwrap_or_default();
        !name.contains('/') && extensions.iter().any(|wanted| extension == *wanted)
    };
    names.iter().filter(has_extension).min()
}

/// What `generation_config.json` says: end-of-text ids, which instruct models extend, and how tokens are chosen. Without
/// ids of its own, those of `config.json` hold.
fn generation(
    folder: &Path,
    config_file: &Path,
    config: &Value,
) -> Result<(Vec<u32>, GenerationDefaults)> {
    let file = folder.join("generation_config.json");
    let own = match file.exists() {
        true => read_json(&file)?,
        false => Value::Null,
    };
    let ids = token_ids(&file, &own)?;
    let ids = match ids.is_empty() {
        true => token_ids(config_file, config)?,
        false => ids,
    };
    Ok((ids, GenerationDefaults::of_json(&file, &own)?))
}

/// `eos_token_id`: absent, null, one id or a list of ids.
fn token_ids(file: &Path, json: &Value) -> Result<Vec<u32>> {
    let ids = match json.get("eos_token_id") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.as_slice(),
        Some(id) => std::slice::from_ref(id),
    };
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids: Option<Vec<u32>> = ids.iter().map(id).collect();
    ids.ok_or_else(|| {
        let problem = "must be a token id or a list of token ids";
        Error::bad_model(file, "eos_token_id", problem)
    })
}

/// The template of `chat_template.jinja` (newer exports), else of `tokenizer_config.json`.
fn chat_template(folder: &Path) -> Result<Option<String>> {
    let file = folder.join("chat_template.jinja");
    if file.exists() {
        let text = std::fs::read_to_string(&file);
        return text
            .map(Some)
            .map_err(|e| Error::bad_model(&file, "text", e));
    }
    let file = folder.join("tokenizer_config.json");
    if !file.exists() {
        return Ok(None);
    }
    // Some models list several templates by name; the one called `default` is meant for chat.
    match read_json(&file)?.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(template)) => Ok(Some(template.clone())),
        Some(Value::Array(named)) => {
            let default = named.iter().find(|t| t["name"] == "default");
            Ok(default
                .and_then(|t| t["template"].as_str())
                .map(str::to_owned))
        }
        Some(_) => Err(Error::bad_model(&file, "chat_template", "must be a text")),
    }
}

/// Loads `tokenizer.json` and checks that it is a byte-level BPE, because decoding relies on the byte-level alphabet.
fn tokenizer(file: &Path) -> Result<Tokenizer> {
    /// The tokenizers crate panics if `decoder` is not JSON; deserializing this struct also checks the syntax of the
    /// rest of the file.
    #[derive(serde::Deserialize)]
    struct Outline {
        #[serde(default, rename = "decoder")]
        _decoder: Value,
    }
    let bytes = std::fs::read(file).map_err(|e| Error::not_found(file, e))?;
    serde_json::from_slice::<Outline>(&bytes).map_err(|e| Error::bad_model(file, "JSON", e))?;
    let tokenizer = Tokenizer::from_bytes(bytes);
    let mut tokenizer = tokenizer.map_err(|e| Error::bad_model(file, "JSON", e))?;
    // Some exports keep the truncation or padding of their training; neither may change a prompt.
    tokenizer.with_padding(None);
    let untruncated = tokenizer.with_truncation(None);
    untruncated.map_err(|e| Error::bad_model(file, "truncation", e))?;
    if !matches!(tokenizer.get_model(), ModelWrapper::BPE(_)) {
        return Err(Error::bad_model(file, "model.type", "must be BPE"));
    }
    if !matches!(tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
        return Err(Error::bad_model(file, "decoder.type", "must be ByteLevel"));
    }
    Ok(tokenizer)
}
