//! Access to the server: API keys, allowed origins and the path prefix.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use axum::http::HeaderValue;
use sha2::{Digest, Sha256};

use super::secret_file::{self, Stamp, stamp_of};
use crate::error::{Error, Result};

/// Who may send requests, from which origins, and under which path prefix.
#[derive(Default)]
pub struct Access {
    /// A client needs one of these keys; with `None`, no key is needed.
    pub keys: Option<ApiKeys>,
    /// Whether metrics, version and API documents are also on an admin port, so that the API's port may require a key
    /// for them.
    pub has_admin_port: bool,
    /// The prefix of every path, for proxies that do not remove it: empty, or `/prefix`.
    pub root_path: String,
    /// The origins whose pages may call the API from a browser (CORS); `*` stands for all.
    pub cors_origins: Vec<HeaderValue>,
}

/// The accepted keys, and the file they were read from.
pub struct ApiKeys {
    file: PathBuf,
    known: RwLock<Known>,
}

/// Digests of the keys, so that a memory dump does not reveal them.
///
/// The time of a look-up depends on the digest of the key that was sent. The digest is salted with a random number that
/// never leaves this process, so the time reveals nothing about how close a guessed key is. It does not grow with the
/// number of keys.
struct Known {
    salt: [u8; 32],
    digests: HashSet<[u8; 32]>,
    /// The stamp of the file when it was read; `None` if its metadata could not be read.
    stamp: Option<Stamp>,
}

impl ApiKeys {
    /// Reads a file with one key per line; blank lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the file cannot be read, [`Error::Config`] when it contains no key or is not text: a
    /// server that is meant to require keys must not start without them.
    pub fn read(file: &Path) -> Result<Self> {
        let known = Known::read(file)?;
        let file = file.to_owned();
        Ok(Self {
            file,
            known: RwLock::new(known),
        })
    }

    /// Reads the file again if it has changed, or in any case if `always`. If the file has become unusable, the keys
    /// stay as they are, and an error is logged.
    pub fn reload(&self, always: bool) {
        let stamp = stamp_of(&self.file);
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let is_same = known.stamp == stamp;
        drop(known);
        if is_same && !always {
            return;
        }
        let read = Known::read(&self.file);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(new) => {
                tracing::info!(
                    keys = new.digests.len(),
                    "the file of API keys was read again"
                );
                *known = new;
            }
            Err(error) => {
                tracing::error!(%error, "the file of API keys cannot be used; the keys stay as they were");
                // Logged once, not at every check.
                known.stamp = stamp;
            }
        }
    }

    /// Whether `key` is one of the accepted keys.
    pub fn accept(&self, key: &[u8]) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.digests.contains(&digest(&known.salt, key))
    }
}

impl Known {
    fn read(file: &Path) -> Result<Self> {
        // Taken before the text is read, so that a change in between is noticed at the next check.
        let stamp = stamp_of(file);
        let bytes = secret_file::read(file)?;
        let refused = |problem| {
            let problem = format!("{}: the file of API keys {problem}", file.display());
            Error::Config(problem)
        };
        let text = std::str::from_utf8(&bytes).map_err(|_| refused("is not text in UTF-8"))?;
        let salt = rand::random();
        // Editors on Windows write a byte order mark first.
        let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
        let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let digests: HashSet<_> = keys.map(|key| digest(&salt, key.as_bytes())).collect();
        if digests.is_empty() {
            return Err(refused("is empty"));
        }
        secret_file::warn_if_open(file, "the API keys");
        Ok(Self {
            salt,
            digests,
            stamp,
        })
    }
}

fn digest(salt: &[u8; 32], key: &[u8]) -> [u8; 32] {
    let digest = Sha256::new().chain_update(salt).chain_update(key);
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_marks_comments_and_line_ends_of_windows_are_no_part_of_keys() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "\u{feff}first\r\n# second\r\n\r\n  third # key\r\n").unwrap();
        let keys = ApiKeys::read(file.path()).unwrap();
        for (key, is_good) in [
            ("first", true),
            ("third # key", true),
            ("\u{feff}first", false),
            ("first\r", false),
            ("# second", false),
            ("second", false),
            ("", false),
        ] {
            assert_eq!(keys.accept(key.as_bytes()), is_good, "{key:?}");
        }
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_broken_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("keys"), folder.path().join("link"));
        std::fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let keys = ApiKeys::read(&link).unwrap();
        let accepted = || ["old", "new", "newest"].map(|key| keys.accept(key.as_bytes()));

        // The way Kubernetes updates a file: another file takes its name.
        let other = folder.path().join("other");
        std::fs::write(&other, "new").unwrap();
        let second = folder.path().join("second link");
        std::os::unix::fs::symlink(&other, &second).unwrap();
        std::fs::rename(&second, &link).unwrap();
        keys.reload(false);
        assert_eq!(accepted(), [false, true, false]);

        for broken in ["", "# nothing but a comment"] {
            std::fs::write(&other, broken).unwrap();
            keys.reload(false);
            assert_eq!(accepted(), [false, true, false]);
        }
        std::fs::remove_file(&other).unwrap();
        keys.reload(true);
        assert_eq!(accepted(), [false, true, false]);

        std::fs::write(&other, "newest").unwrap();
        keys.reload(false);
        assert_eq!(accepted(), [false, false, true]);
    }

    #[test]
    fn a_hundred_thousand_keys_cost_a_look_up_no_more_than_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let many: String = (0..100_000).map(|n| format!("key-{n:090}\n")).collect();
        std::fs::write(&file, many).unwrap();
        let keys = ApiKeys::read(file.path()).unwrap();
        let start = std::time::Instant::now();
        for n in 0..1000 {
            assert!(keys.accept(format!("key-{n:090}").as_bytes()));
            assert!(!keys.accept(format!("key-{n:091}").as_bytes()));
        }
        // Comparing each key with all others took 200 ms.
        let each = start.elapsed() / 2000;
        assert!(each < std::time::Duration::from_millis(5), "{each:?}");
    }
}
