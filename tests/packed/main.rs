//! Packed models: they equal quantization in memory bit for bit, in every scheme; damage is refused; folders are
//! written atomically.

mod calibrated;
mod earlier;
mod files;
mod killed;
mod schemes;

use std::path::{Path, PathBuf};

use microgranite::int8::scheme::Scheme;
use microgranite::model::{self, Granite, Placement};
use microgranite::sources::{self, Checkpoint, Reference};
use microgranite::study::pack::{self, Plan};
use tempfile::TempDir;

/// Every kind of layer: attention and Mamba-2, one feed-forward layer, experts, and experts beside a shared layer.
const FIXTURES: [&str; 6] = [
    "granite-3-tiny",
    "granite-4-dense-tiny",
    "granite-4-hybrid-tiny",
    "granite-4-hybrid-moe-tiny",
    "granite-3-moe-tiny",
    "granite-moe-shared-tiny",
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn try_open(path: &Path) -> microgranite::error::Result<Checkpoint> {
    let settings = sources::Settings::from_variables(|_| None, false);
    sources::open(&Reference::Folder(path.into()), &settings)
}

fn open(path: &Path) -> Checkpoint {
    try_open(path).expect("the model opens")
}

fn try_load(checkpoint: &Checkpoint, weights: Placement) -> microgranite::error::Result<Granite> {
    let settings = model::Settings {
        threads: 2,
        slots: 4,
        snapshots: 0,
        kv_bytes: 8 << 20,
        context: None,
        weights,
    };
    model::load(checkpoint, &settings, &mut |_, _| ())
}

fn load(checkpoint: &Checkpoint, weights: Placement) -> Granite {
    try_load(checkpoint, weights).expect("the model loads")
}

/// A fixture, packed into a new folder with its configuration and tokenizer.
fn pack(name: &str, scheme: &Scheme) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(fixture(name).join(file), folder.path().join(file)).unwrap();
    }
    let checkpoint = open(&fixture(name));
    let plan = Plan {
        scheme: *scheme,
        ..Plan::default()
    };
    pack::write(&checkpoint, &plan, 2, folder.path(), &mut |_, _| ()).unwrap();
    folder
}
