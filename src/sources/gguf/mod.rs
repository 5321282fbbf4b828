//! A GGUF file: configuration, tokenizer and weights in one, or in several parts.

mod config;
mod cursor;
mod format;
mod header;
mod keys;
mod layers;
mod pre_tokenizer;
mod split;
mod tensors;
mod tokenizer;

use std::path::Path;

use tokenizers::Tokenizer;

use super::generation::GenerationDefaults;
use super::mapped::Mapped;
use super::parts::Part;
use super::{Checkpoint, Contents};
use crate::error::Result;
use header::Header;
use tensors::GgufTensors;

/// Opens the file at `path`. If it is one part of a model, all parts must be beside it.
///
/// # Errors
/// [`crate::error::Error::NotFound`] when it or another part is missing, [`crate::error::Error::BadModel`] naming the
/// metadata key or tensor when it is inconsistent.
pub fn open(path: &Path) -> Result<Checkpoint> {
    let maps = split::open(path)?;
    let header = split::read(&maps)?;
    let path = maps.first().map_or(path, Mapped::path).to_owned();
    let path = path.as_path();
    let config = config::translate(path, &header)?;
    let tokenizer = tokenizer::build(path, &header)?;
    let eos_token_ids = config::eos_token_ids(&header)?;
    let generation = GenerationDefaults::of_gguf(path, |key| header.number(key))?;
    let chat_template = header.text("tokenizer.chat_template")?.map(str::to_owned);
    let tensors = tensors::present(&maps, header.tensors, &config)?;
    maps.iter().for_each(Mapped::read_ahead);
    Ok(Checkpoint {
        name: name(path),
        config_file: path.into(),
        config,
        eos_token_ids,
        generation,
        tokenizer,
        chat_template,
        contents: Contents::Original(Box::new(GgufTensors::new(maps, tensors))),
    })
}

/// The file's name without its extension, and without the numbers of a part.
fn name(path: &Path) -> String {
    let whole = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    Part::of(&whole).map_or(stem.into_owned(), |part| part.model.to_owned())
}

/// Reads only the tokenizer of the file at `path`, which need not contain a model.
///
/// # Errors
/// As for [`open`].
pub fn open_tokenizer(path: &Path) -> Result<Tokenizer> {
    let map = Mapped::open(path)?;
    tokenizer::build(path, &Header::read(path, &map)?)
}
