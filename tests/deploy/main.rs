//! The deployment bundle is held against the service it deploys: dashboard against metrics, manifests against flags,
//! and every dashboard query against a Prometheus that scrapes the running binary.

mod dashboard;
mod live;
mod load;
mod manifests;
mod metrics;
mod printed;
mod processes;

use std::path::PathBuf;
use std::process::Command;

/// A file of this package.
fn package_file(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A file of this package as text; its absence is a failed test.
fn read(path: &str) -> String {
    std::fs::read_to_string(package_file(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The binary, without the variable that names the tests' own files: the binary knows all of its variables.
fn microgranite() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_microgranite"));
    command.env_remove("MICROGRANITE_ASSETS");
    command
}
