//! The deployment bundle is held against the service it deploys: dashboard against metrics, manifests against flags,
//! and every dashboard query against a Prometheus that scrapes the running binary.

mod dashboard;
mod live;
mod load;
mod manifests;
mod metrics;
mod processes;

use std::path::PathBuf;

/// A file of this package.
fn package_file(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A file of this package as text; its absence is a failed test.
fn read(path: &str) -> String {
    std::fs::read_to_string(package_file(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}
