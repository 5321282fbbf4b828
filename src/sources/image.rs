//! The names of models in registries of container images.

use std::fmt;

/// The owner of the models in Ollama's library whose names have no owner.
const LIBRARY: &str = "library";
/// The tag that is meant if none is named.
const LATEST: &str = "latest";
/// The most characters of a repository's name; registries have the same limit.
const MAX_REPOSITORY: usize = 255;
/// The most characters of a tag; registries have the same limit.
const MAX_TAG: usize = 128;
/// The digits of a SHA-256.
const HASH_DIGITS: usize = 64;

/// A model in a registry, as `ollama:NAME[:TAG]` or `oci://HOST/REPOSITORY[:TAG|@DIGEST]` names it. Its parts are plain
/// enough to be parts of a URL and of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The registry, with its port if it has one; `None` for Ollama's own.
    pub host: Option<String>,
    /// The repository: names separated by `/`.
    pub repository: String,
    /// Which of its versions.
    pub version: Version,
}

/// A version of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Version {
    /// A tag, which may be moved to another version.
    Tag(String),
    /// The SHA-256 of the manifest, in lower-case hexadecimal.
    Digest(String),
}

impl Image {
    /// Parses what follows `ollama:`, which may begin with `//`.
    pub fn of_ollama(text: &str) -> Option<Self> {
        let text = text.strip_prefix("//").unwrap_or(text);
        let (name, tag) = text.split_once(':').unwrap_or((text, LATEST));
        let repository = match name.split('/').count() {
            1 => format!("{LIBRARY}/{name}"),
            2 => name.to_owned(),
            _ => return None,
        };
        let is_valid = is_repository(&repository) && is_tag(tag);
        is_valid.then(|| Self {
            host: None,
            repository,
            version: Version::Tag(tag.to_owned()),
        })
    }

    /// Parses what follows `oci://`. A digest takes precedence over a tag.
    pub fn of_oci(text: &str) -> Option<Self> {
        let (host, rest) = text.split_once('/')?;
        let (name, digest) = match rest.split_once('@') {
            Some((name, digest)) => (name, Some(hash_of(digest)?)),
            None => (rest, None),
        };
        let (repository, tag) = name.split_once(':').unwrap_or((name, LATEST));
        let is_valid = is_host(host) && is_repository(repository) && is_tag(tag);
        is_valid.then(|| Self {
            host: Some(host.to_owned()),
            repository: repository.to_owned(),
            version: match digest {
                Some(digest) => Version::Digest(digest.to_owned()),
                None => Version::Tag(tag.to_owned()),
            },
        })
    }

    /// The name under which the model is served: that by which Ollama's clients know it, or else the repository.
    pub fn served_name(&self) -> String {
        let whole = self.to_string();
        match &self.host {
            None => whole.trim_start_matches("ollama:").to_owned(),
            Some(_) => self.repository.clone(),
        }
    }

    /// The last name of the repository.
    pub fn name(&self) -> &str {
        self.repository.rsplit('/').next().unwrap_or_default()
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let repository = &self.repository;
        match &self.host {
            Some(host) => write!(f, "oci://{host}/{repository}")?,
            None => {
                let name = repository.strip_prefix("library/").unwrap_or(repository);
                write!(f, "ollama:{name}")?;
            }
        }
        match &self.version {
            Version::Tag(tag) if tag == LATEST => Ok(()),
            Version::Tag(tag) => write!(f, ":{tag}"),
            Version::Digest(hash) => write!(f, "@sha256:{hash}"),
        }
    }
}

/// The SHA-256 of a digest such as `sha256:0123…`; registries use no other hash.
pub fn hash_of(digest: &str) -> Option<&str> {
    let hash = digest.strip_prefix("sha256:")?;
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (hash.len() == HASH_DIGITS && hash.bytes().all(is_digit)).then_some(hash)
}

fn is_repository(text: &str) -> bool {
    // No part begins with a dot or an underscore, so none leaves its folder or takes the name of one of the cache's own.
    let is_part =
        |part: &str| part.starts_with(|c: char| c.is_ascii_alphanumeric()) && is_plain(part);
    text.len() <= MAX_REPOSITORY && text.split('/').all(is_part)
}

fn is_tag(text: &str) -> bool {
    let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    begins && text.len() <= MAX_TAG && is_plain(text)
}

fn is_host(text: &str) -> bool {
    let (name, port) = text.split_once(':').unwrap_or((text, "443"));
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= MAX_REPOSITORY
        && name.chars().all(is_name)
        && port.bytes().all(|byte| byte.is_ascii_digit())
        && port.parse::<u16>().is_ok()
}

/// Whether the text has only letters, digits, `-`, `_` and `.`.
pub fn is_plain(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_ollama_and_oci_write_them_and_printed_alike() {
        let hash = "0123456789abcdef".repeat(4);
        let digest = format!("@sha256:{hash}");
        let tag = |tag: &str| Version::Tag(tag.to_owned());
        for (text, host, repository, version, printed) in [
            (
                "ollama:granite4.1:3b",
                None,
                "library/granite4.1",
                tag("3b"),
                "ollama:granite4.1:3b",
            ),
            (
                "ollama:granite4",
                None,
                "library/granite4",
                tag("latest"),
                "ollama:granite4",
            ),
            (
                "ollama://ibm/granite4:tiny-h",
                None,
                "ibm/granite4",
                tag("tiny-h"),
                "ollama:ibm/granite4:tiny-h",
            ),
            (
                "oci://ghcr.io/a/b/c",
                Some("ghcr.io"),
                "a/b/c",
                tag("latest"),
                "oci://ghcr.io/a/b/c",
            ),
            (
                "oci://localhost:5000/m:v1",
                Some("localhost:5000"),
                "m",
                tag("v1"),
                "oci://localhost:5000/m:v1",
            ),
            (
                &format!("oci://h/m:v1{digest}"),
                Some("h"),
                "m",
                Version::Digest(hash.clone()),
                &format!("oci://h/m{digest}"),
            ),
        ] {
            let (scheme, name) = text.split_at(text.find(':').unwrap() + 1);
            let image = match scheme {
                "ollama:" => Image::of_ollama(name),
                _ => Image::of_oci(&name[2..]),
            };
            let image = image.expect(text);
            assert_eq!(image.host.as_deref(), host, "{text}");
            assert_eq!(image.repository, repository, "{text}");
            assert_eq!(image.version, version, "{text}");
            assert_eq!(image.to_string(), printed);
            let served = printed.strip_prefix("ollama:").unwrap_or(repository);
            assert_eq!(image.served_name(), served);
        }
    }

    #[test]
    fn what_could_leave_the_cache_or_the_url_is_refused() {
        let long = "a".repeat(300);
        for name in [
            "",
            ":",
            "a:",
            "a:b:c",
            "a/b/c",
            "../a",
            "a/..",
            ".a",
            "a/.b",
            "a b",
            "a?b",
            "a%2fb",
            "/a",
            "a/",
            "a:../b",
            "a:.b",
            "a@sha256:00",
            "_tags",
            &long,
        ] {
            assert_eq!(Image::of_ollama(name), None, "{name:?}");
        }
        for name in [
            "",
            "h",
            "h/",
            "/m",
            "h/../m",
            "h/m/..",
            "h:x/m",
            "h:/m",
            "h:99999/m",
            "user@h/m",
            "h/m@sha256:00",
            "h/m@md5:00",
            "h/m:",
            "h/m:a/b",
            "h/m?x",
            "h/m#x",
            "h/a//b",
            "[::1]/m",
            "-h/m",
            &format!("h/{long}"),
        ] {
            assert_eq!(Image::of_oci(name), None, "{name:?}");
        }
    }
}
