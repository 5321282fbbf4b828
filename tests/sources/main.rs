//! Model sources, tested on real files, on malformed files, and on a hub and a registry on loopback.

mod chat_templates;
mod folders;
mod gguf_files;
mod gguf_granite;
mod gguf_hybrid;
mod gguf_hybrid_files;
mod gguf_hybrid_refusals;
mod gguf_parts;
mod gguf_refusals;
mod gguf_writer;
mod hub;
mod hub_server;
mod quantized;
mod refusals;
mod registry;
mod registry_server;
mod thinking;
mod tokenizers;
mod wheels;

use std::path::{Path, PathBuf};

use microgranite::error::Error;
use microgranite::sources::Settings;

/// A checkpoint that comes with the repository.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// The folder with files of published Granites, described in tests/README.md. Without it, tests that need them end
/// early.
fn assets() -> Option<PathBuf> {
    let assets = std::env::var_os("MICROGRANITE_ASSETS");
    if assets.is_none() {
        eprintln!("skipped: MICROGRANITE_ASSETS is not set; tests/README.md says what it holds");
    }
    assets.map(PathBuf::from)
}

/// Settings that never reach the network.
fn offline() -> Settings {
    let offline = |name: &str| (name == "HF_HUB_OFFLINE").then(|| "1".to_owned());
    Settings::from_variables(offline, false)
}

/// Asserts that something was refused with this exit code, in one line that contains all of `parts`.
#[track_caller]
fn assert_refused<T>(result: Result<T, Error>, exit_code: u8, parts: &[&str]) {
    let Err(error) = result else {
        panic!("was accepted; expected a refusal that names {parts:?}");
    };
    let line = error.to_string();
    assert_eq!(error.exit_code(), exit_code, "{line}");
    assert!(!line.contains('\n'), "more than one line: {line:?}");
    for part in parts {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
}
