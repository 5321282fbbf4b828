//! Files of secrets and certificates that may be replaced while the service runs.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::error::{Error, Result};

/// Metadata that changes when a file, or the link to it, is rewritten or replaced.
pub type Stamp = (u64, u64, u64, i64, i64);

/// Bytes of such a file at most: a hundred thousand keys, or any chain of certificates. Without a limit, a file without
/// an end, such as a device, would fill the memory.
const MOST_BYTES: u64 = 16 << 20;

/// The file's stamp; `None` if its metadata cannot be read.
pub fn stamp_of(file: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(file).ok()?;
    let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
    Some((
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        seconds,
        nanoseconds,
    ))
}

/// Reads the file.
///
/// # Errors
/// [`Error::NotFound`] when it cannot be read, [`Error::Config`] when it is larger than any such file.
pub fn read(file: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(file).and_then(|open| open.take(MOST_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|problem| Error::not_found(file, problem))?;
    if bytes.len() as u64 > MOST_BYTES {
        let problem = format!("{}: larger than any such file", file.display());
        return Err(Error::Config(problem));
    }
    Ok(bytes)
}

/// Logs a warning if everybody on this machine can read the file, which holds `what`.
pub fn warn_if_open(file: &Path, what: &str) {
    if std::fs::metadata(file).is_ok_and(|metadata| is_open_to_others(&metadata)) {
        let file = file.display();
        tracing::warn!(%file, "everybody on this machine can read {what}; take away the right of others");
    }
}

fn is_open_to_others(metadata: &Metadata) -> bool {
    metadata.permissions().mode() & 0o004 != 0
}
