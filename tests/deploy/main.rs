//! Checks the deployment files against the service they deploy: dashboard against metrics, manifests against flags, and
//! every dashboard query against a Prometheus that scrapes the running binary.

mod alerts;
mod build;
mod cluster;
mod dashboard;
mod installed;
mod live;
mod load;
mod manifests;
mod manual;
mod metrics;
mod pools;
mod printed;
mod processes;

use std::path::PathBuf;
use std::process::Command;

/// A file of this package.
fn package_file(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A file of this package as text; if it is missing, the test fails.
fn read(path: &str) -> String {
    std::fs::read_to_string(package_file(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The binary, without the environment variable for the tests' own files, which the binary would refuse.
fn microgranite() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_microgranite"));
    command.env_remove("MICROGRANITE_ASSETS");
    command
}
