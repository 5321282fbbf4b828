//! Models for the checks: the fixture of two layers, which answers in milliseconds, in several forms.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::arguments::Context;
use crate::findings::Problem;

/// The name under which the fixture is served.
pub const NAME: &str = "tiny";
/// Ids of plain text in the fixture's vocabulary: 0 to 3 are special.
pub const IDS: std::ops::Range<u32> = 4..300;

/// A file or folder of `tests/`.
pub fn of_tests(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(name)
}

/// A model in a folder that is removed with this value.
pub struct Model {
    _folder: TempDir,
    pub path: PathBuf,
}

/// The fixture with a longer context, so that answers and prompts can take as long as a check needs.
pub fn tiny(context_tokens: usize) -> Result<Model, Problem> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join(NAME);
    fs::create_dir(&path)?;
    for entry in fs::read_dir(of_tests("fixtures/granite-3-tiny"))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), path.join(entry.file_name()))?;
        }
    }
    let config = path.join("config.json");
    let text = fs::read_to_string(&config)?;
    let (old, new) = (
        "\"max_position_embeddings\": 512",
        format!("\"max_position_embeddings\": {context_tokens}"),
    );
    assert!(text.contains(old), "the fixture's context is 512 tokens");
    fs::write(&config, text.replace(old, &new))?;
    Ok(Model {
        _folder: folder,
        path,
    })
}

/// The same, packed.
pub fn packed(context: &Context, context_tokens: usize) -> Result<Model, Problem> {
    let floats = tiny(context_tokens)?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join(NAME);
    let output = Command::new(&context.server)
        .arg("quantize")
        .arg(&floats.path)
        .arg("--output")
        .arg(&path)
        .args(["--rounding", "nearest", "--log", "error"])
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(Model {
        _folder: folder,
        path,
    })
}
