//! The file of API keys. Several keys with one name are one client; one of their lines has its settings.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use sha2::{Digest, Sha256};

use super::client::{Client, Terms, Used};
use super::line::Line;
use crate::engine::Flow;
use crate::error::{Error, Result};
use crate::http::secret_file::{self, Stamp, stamp_of};

/// The accepted keys, and the file they were read from.
pub struct ApiKeys {
    file: PathBuf,
    known: RwLock<Known>,
}

/// The clients by the digests of their keys, so that a memory dump does not reveal the keys.
///
/// The time of a look-up depends on the digest of the key that was sent. The digest is salted with a random number that
/// never leaves this process, so the time reveals nothing about how close a guessed key is. It does not grow with the
/// number of keys.
struct Known {
    salt: [u8; 32],
    clients: HashMap<[u8; 32], Arc<Client>>,
    /// The stamp of the file when it was read; `None` if its metadata could not be read.
    stamp: Option<Stamp>,
    /// Its stamp at the last look.
    seen: Option<Stamp>,
}

impl ApiKeys {
    /// Reads a file with one key per line, each with settings or without; blank lines and lines that begin with `#` are
    /// skipped.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the file cannot be read, [`Error::Config`] when it contains no key, is not text, or has a bad
    /// line: a server that is meant to require keys must not start without them.
    pub fn read(file: &Path) -> Result<Self> {
        let known = Known::read(file, None)?;
        let file = file.to_owned();
        Ok(Self {
            file,
            known: RwLock::new(known),
        })
    }

    /// Reads the file again if it has changed and is complete, or in any case if `always`. If the file has become
    /// unusable, the keys stay as they are, and an error is logged.
    pub fn reload(&self, always: bool) {
        let stamp = stamp_of(&self.file);
        if !self.has_settled(stamp) && !always {
            return;
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let read = Known::read(&self.file, Some(&known));
        drop(known);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(new) => {
                tracing::info!(
                    keys = new.clients.len(),
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

    /// Whether the file has changed since it was read, but not since the last look. If it has, somebody may still be
    /// writing it, and the lines that are there already would be taken for all of them.
    fn has_settled(&self, stamp: Option<Stamp>) -> bool {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let is_as_seen = known.seen == stamp;
        known.seen = stamp;
        is_as_seen && known.stamp != stamp
    }

    /// The client with this key.
    pub fn client(&self, key: &[u8]) -> Option<Arc<Client>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.clients.get(&digest(&known.salt, key)).cloned()
    }

    /// The names of all clients, each once.
    pub fn names(&self) -> Vec<String> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let clients = known.clients.values();
        let mut names: Vec<String> = clients.map(|client| client.name().to_owned()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

impl Known {
    /// Reads the file. Clients that `before` has too keep what they have used of their limits.
    fn read(file: &Path, before: Option<&Self>) -> Result<Self> {
        // Taken before the text is read, so that a change in between is noticed at the next check.
        let stamp = stamp_of(file);
        let bytes = secret_file::read(file)?;
        let refused = |problem: &str| {
            let problem = format!("{}: the file of API keys {problem}", file.display());
            Error::Config(problem)
        };
        let text = std::str::from_utf8(&bytes).map_err(|_| refused("is not text in UTF-8"))?;
        // Editors on Windows write a byte order mark first.
        let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
        let lines = (1_usize..).zip(lines);
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let mut parsed = Vec::new();
        let mut terms: HashMap<&str, (usize, Terms)> = HashMap::new();
        for (number, line) in lines {
            let bad = |problem: &str| {
                let file = file.display();
                Error::Config(format!("{file}, line {number}: {problem}"))
            };
            let line = Line::parse(line).map_err(|problem| bad(&problem))?;
            if let (Some(name), Some(new)) = (line.name, &line.terms)
                && let Some((first, _)) = terms.insert(name, (number, new.clone()))
            {
                let problem = format!("'{name}' has its settings in line {first} already");
                return Err(bad(&problem));
            }
            parsed.push((number, line));
        }
        let mut salt = [0; 32];
        rand::fill(&mut salt);
        // Whose share there is to weigh: with a single client there is nobody to be fair to.
        let owners = parsed.iter().map(|(_, line)| match line.name {
            Some(name) => (true, name),
            None => (false, line.key),
        });
        let are_several = owners.collect::<HashSet<_>>().len() > 1;
        let used = before.map(Self::used).unwrap_or_default();
        let mut clients: HashMap<[u8; 32], Arc<Client>> = HashMap::new();
        let mut named: HashMap<&str, Arc<Client>> = HashMap::new();
        for (number, line) in &parsed {
            let digest = digest(&salt, line.key.as_bytes());
            let id = match are_several {
                true => id(&digest),
                false => Flow::SHARED.id,
            };
            let client = match line.name {
                Some(name) => named.entry(name).or_insert_with(|| {
                    let (_, terms) = terms.remove(name).unwrap_or_default();
                    let used = used.get(name).cloned().unwrap_or_default();
                    let client = Client::new(Some(name.to_owned()), terms, id, used);
                    Arc::new(client)
                }),
                None => &mut Arc::new(Client::new(None, Terms::default(), id, Arc::default())),
            };
            let before = clients.insert(digest, Arc::clone(client));
            if before.is_some_and(|before| before.name() != client.name()) {
                let file = file.display();
                let problem = "this key has another name in an earlier line";
                return Err(Error::Config(format!("{file}, line {number}: {problem}")));
            }
        }
        if clients.is_empty() {
            return Err(refused("is empty"));
        }
        secret_file::warn_if_open(file, "the API keys");
        Ok(Self {
            salt,
            clients,
            stamp,
            seen: stamp,
        })
    }

    /// What the clients with names have used.
    fn used(&self) -> HashMap<String, Arc<Used>> {
        let clients = self.clients.values();
        let named = clients.filter(|client| client.is_named());
        let used = named.map(|client| (client.name().to_owned(), Arc::clone(client.used())));
        used.collect()
    }
}

/// A number for the flow of a client; never that of [`Flow::SHARED`].
fn id(digest: &[u8; 32]) -> u64 {
    let first = digest.first_chunk().expect("a digest has 32 bytes");
    u64::from_le_bytes(*first).max(Flow::SHARED.id + 1)
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
            assert_eq!(keys.client(key.as_bytes()).is_some(), is_good, "{key:?}");
        }
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_broken_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("keys"), folder.path().join("link"));
        std::fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let keys = ApiKeys::read(&link).unwrap();
        let accepted = || ["old", "new", "newest"].map(|key| keys.client(key.as_bytes()).is_some());

        // The way Kubernetes updates a file: another file takes its name.
        let other = folder.path().join("other");
        std::fs::write(&other, "new").unwrap();
        let second = folder.path().join("second link");
        std::os::unix::fs::symlink(&other, &second).unwrap();
        std::fs::rename(&second, &link).unwrap();
        keys.reload(false);
        assert_eq!(accepted(), [true, false, false], "it may not be complete");
        keys.reload(false);
        assert_eq!(accepted(), [false, true, false]);

        for broken in ["", "# nothing but a comment"] {
            std::fs::write(&other, broken).unwrap();
            keys.reload(false);
            keys.reload(false);
            assert_eq!(accepted(), [false, true, false]);
        }
        std::fs::remove_file(&other).unwrap();
        keys.reload(true);
        assert_eq!(accepted(), [false, true, false]);

        std::fs::write(&other, "newest").unwrap();
        keys.reload(false);
        keys.reload(false);
        assert_eq!(accepted(), [false, false, true]);
    }

    #[test]
    fn a_file_that_is_still_being_written_is_not_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "first\nlast").unwrap();
        let keys = ApiKeys::read(file.path()).unwrap();
        let accepted = || ["first", "fir", "last"].map(|key| keys.client(key.as_bytes()).is_some());
        for written in ["fir", "first\nmid", "first\nmiddle\nlast"] {
            std::fs::write(&file, written).unwrap();
            keys.reload(false);
            assert_eq!(accepted(), [true, false, true], "{written}");
        }
        keys.reload(false);
        assert_eq!(accepted(), [true, false, true]);
        assert!(keys.client(b"middle").is_some());
    }

    #[test]
    fn a_hundred_thousand_keys_cost_a_look_up_no_more_than_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let many: String = (0..100_000).map(|n| format!("key-{n:090}\n")).collect();
        std::fs::write(&file, many).unwrap();
        let keys = ApiKeys::read(file.path()).unwrap();
        let start = std::time::Instant::now();
        for n in 0..1000 {
            assert!(keys.client(format!("key-{n:090}").as_bytes()).is_some());
            assert!(keys.client(format!("key-{n:091}").as_bytes()).is_none());
        }
        // Comparing each key with all others took 200 ms.
        let each = start.elapsed() / 2000;
        assert!(each < std::time::Duration::from_millis(5), "{each:?}");
    }

    fn read(text: &str) -> Result<ApiKeys> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        ApiKeys::read(file.path())
    }

    #[test]
    fn a_bad_line_is_refused_with_its_number_and_without_its_key() {
        for (line, problem) in [
            ("secret name=", "a name is made of"),
            ("secret name=a/b", "a name is made of"),
            (
                "secret name=a weight=0",
                "weight must be a whole number from 1 to 1000",
            ),
            (
                "secret name=a weight=1.5",
                "weight must be a whole number from 1 to 1000",
            ),
            (
                "secret name=a requests_per_minute",
                "requests_per_minute must be",
            ),
            ("secret name=a weight=1 weight=1", "weight is there twice"),
            ("secret name=a colour=red", "behind the name there can be"),
            (
                "secret name=bob weight=2",
                "'bob' has its settings in line 2 already",
            ),
            (
                "first name=other",
                "this key has another name in an earlier line",
            ),
        ] {
            let text = format!("# keys\nfirst name=bob weight=1\n\n{line}\n");
            let error = read(&text).err().expect(line).to_string();
            assert!(error.contains(", line 4: "), "{line}: {error}");
            assert!(error.contains(problem), "{line}: {error}");
            assert!(!error.contains("secret"), "{line}: {error}");
        }
    }

    #[test]
    fn keys_with_one_name_are_one_client_and_keys_without_are_one_each() {
        let keys = read("a name=x weight=2\nb name=x\nc\nd\n").unwrap();
        let flow = |key: &str| keys.client(key.as_bytes()).unwrap().flow();
        assert_eq!(flow("a"), flow("b"));
        assert_eq!(flow("b").weight, 2.0);
        assert!(flow("c").id != flow("d").id && flow("c").id != flow("a").id);
        assert!(
            ["a", "c", "d"]
                .iter()
                .all(|key| flow(key).id != Flow::SHARED.id)
        );
        assert_eq!(keys.names(), ["unnamed", "x"]);
        for alone in ["a", "a name=x\nb name=x"] {
            let keys = read(alone).unwrap();
            assert_eq!(keys.client(b"a").unwrap().flow().id, Flow::SHARED.id);
        }
    }

    #[test]
    fn what_a_client_has_used_outlives_a_change_of_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "a name=x concurrent_requests=1\nother").unwrap();
        let keys = ApiKeys::read(file.path()).unwrap();
        let running = keys.client(b"a").unwrap().begin().unwrap();
        std::fs::write(&file, "new name=x concurrent_requests=1\nother").unwrap();
        keys.reload(true);
        assert!(keys.client(b"a").is_none());
        let client = keys.client(b"new").unwrap();
        assert!(client.begin().is_err(), "its first request still runs");
        drop(running);
        assert!(client.begin().is_ok());
    }
}
