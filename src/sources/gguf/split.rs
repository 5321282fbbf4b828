//! Models in several GGUF files. The first part has the metadata; each part describes the tensors that it holds.

use std::collections::HashSet;
use std::path::Path;

use super::header::{Header, MOST};
use crate::error::{Error, Result};
use crate::sources::mapped::Mapped;
use crate::sources::parts::Part;

/// The number of all parts.
const COUNT: &str = "split.count";
/// The number of a part, from 0 on.
const NUMBER: &str = "split.no";
/// The number of the tensors in all parts together.
const TENSORS: &str = "split.tensors.count";

/// Maps the file at `path`, and all other parts if its name is that of one; the first part comes first.
///
/// # Errors
/// [`Error::NotFound`] naming the part that is missing, and as [`Mapped::open`].
pub fn open(path: &Path) -> Result<Vec<Mapped>> {
    let name = path.file_name().and_then(std::ffi::OsStr::to_str);
    let Some(part) = name.and_then(Part::of) else {
        return Ok(vec![Mapped::open(path)?]);
    };
    let open = |(at, name): (usize, String)| {
        let file = path.with_file_name(name);
        if !file.exists() {
            let problem = format!("part {} of the model's {} is missing", at + 1, part.count);
            return Err(Error::not_found(&file, problem));
        }
        Mapped::open(&file)
    };
    part.all().enumerate().map(open).collect()
}

/// Reads the headers of all parts: the metadata of the first and the tensors of all.
///
/// # Errors
/// [`Error::BadModel`] naming the part, and its key or tensor, when the parts do not belong together.
pub fn read(maps: &[Mapped]) -> Result<Header<'_>> {
    let [first, others @ ..] = maps else {
        return Err(Error::Internal("a model without parts".into()));
    };
    let mut header = Header::read(first.path(), first)?;
    let total = check(first.path(), &header, 0, maps.len())?;
    let Some(total) = total else {
        return Ok(header);
    };
    let mut names: HashSet<&str> = header.tensors.iter().map(|tensor| tensor.name).collect();
    for (at, map) in (1..).zip(others) {
        let file = map.path();
        let part = Header::read(file, map)?;
        let own = check(file, &part, at, maps.len())?;
        if own != Some(total) {
            let problem = format!(
                "{} where the first part has {total}; is it a part of another model?",
                own.unwrap_or_default()
            );
            return Err(Error::bad_model(file, TENSORS, problem));
        }
        for mut tensor in part.tensors {
            if !names.insert(tensor.name) {
                let problem = "is in an earlier part too; is it a part of another model?";
                return Err(Error::bad_model(file, tensor.name, problem));
            }
            tensor.part = at;
            header.tensors.push(tensor);
        }
        if header.tensors.len() as u64 > MOST {
            let problem = format!("the parts have more tensors than the {MOST} we accept");
            return Err(Error::bad_model(file, TENSORS, problem));
        }
    }
    if header.tensors.len() != total {
        let problem = format!("{total}, but the parts have {}", header.tensors.len());
        return Err(Error::bad_model(first.path(), TENSORS, problem));
    }
    Ok(header)
}

/// Compares what a part says about itself with its name: it is number `at` (from 0 on) of `parts`. Returns the number of
/// all tensors, `None` for a model in a single file.
fn check(file: &Path, header: &Header<'_>, at: usize, parts: usize) -> Result<Option<usize>> {
    let refused = |key: &str, problem: String| Err(Error::bad_model(file, key, problem));
    let count = header.count(COUNT)?.unwrap_or(1);
    if count != parts {
        let problem = match parts {
            1 => format!(
                "this is one of {count} parts, so its name must end in -00001-of-{count:05}.gguf, with all parts beside it"
            ),
            _ => format!("{count} where the file's name says {parts}"),
        };
        return refused(COUNT, problem);
    }
    if parts == 1 {
        return Ok(None);
    }
    let number = header.count(NUMBER)?;
    let number = number.ok_or_else(|| header.missing(NUMBER))?;
    if number != at {
        let problem = format!("{number} where the file's name says {at} (part {})", at + 1);
        return refused(NUMBER, problem);
    }
    let tensors = header.count(TENSORS)?;
    tensors.ok_or_else(|| header.missing(TENSORS)).map(Some)
}
