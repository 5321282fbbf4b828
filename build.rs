//! Names the build, so that no two different ones call themselves the same: `BUILD_ID`, which `src/build.rs` shows.
//!
//! `MICROGRANITE_BUILD` says it where it is set, as it is in container builds, which have no `.git`. Otherwise it is the
//! commit, with `-dirty-` and a digest of the changes behind it where the sources differ from it; or the commit that a
//! package was made of; or `unknown`.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a build is made of.
const SOURCES: [&str; 4] = ["src", "build.rs", "Cargo.toml", "Cargo.lock"];
/// Digits of a commit: enough for the largest repositories.
const COMMIT_DIGITS: usize = 12;
/// An id is part of log lines, labels and answers.
const MAX_ID: usize = 64;

fn main() {
    println!("cargo::rerun-if-env-changed=MICROGRANITE_BUILD");
    // Without these, cargo runs this again, and compiles everything again, whenever any file of the folder has changed.
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    let id = match env::var("MICROGRANITE_BUILD") {
        Ok(id) if !id.is_empty() => id,
        _ => commit()
            .or_else(packaged)
            .unwrap_or_else(|| "unknown".to_owned()),
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    assert!(
        id.len() <= MAX_ID && id.bytes().all(is_plain),
        "MICROGRANITE_BUILD must have at most {MAX_ID} letters, digits, dots, underscores and hyphens"
    );
    println!("cargo::rustc-env=BUILD_ID={id}");
}

/// The commit that is checked out, and what was changed since.
fn commit() -> Option<String> {
    // A copy of the sources within another repository, such as cargo's own when it packages them, is none of its commits.
    git(&["ls-files", "--error-unmatch", "build.rs"])?;
    let head = git(&["rev-parse", "HEAD"])?;
    // The sources are what they are whatever the commit is called, so a build for tests is not made again after each one;
    // one to be published is.
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        watch_head();
    }
    let mut id = head.get(..COMMIT_DIGITS)?.to_owned();
    if let Some(digest) = changes()? {
        id += &format!("-dirty-{:08x}", digest as u32);
    }
    Some(id)
}

/// The commit that cargo noted when it packaged the sources.
fn packaged() -> Option<String> {
    let note = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, rest) = note.split_once("\"sha1\": \"")?;
    let dirty = if note.contains("\"dirty\": true") {
        "-dirty"
    } else {
        ""
    };
    Some(rest.get(..COMMIT_DIGITS)?.to_owned() + dirty)
}

/// Has cargo run this again when another commit is checked out: by the files that say which one it is. In a worktree
/// `HEAD` is its own and branches are the repository's.
fn watch_head() {
    let mut files = vec!["HEAD".to_owned(), "packed-refs".to_owned()];
    files.extend(git(&["symbolic-ref", "--quiet", "HEAD"]));
    for file in files {
        let path = git(&["rev-parse", "--git-path", &file]).map(PathBuf::from);
        // One that is not there would count as changed each time.
        if let Some(path) = path.filter(|path| path.exists()) {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
}

/// A digest of what differs from the commit in the sources, files that it does not have included; the inner `None` if
/// nothing does, the outer one if git cannot tell.
fn changes() -> Option<Option<u64>> {
    let with_sources = |arguments: &[&'static str]| git(&[arguments, &SOURCES].concat());
    let changed = with_sources(&["diff", "--binary", "HEAD", "--"])?;
    let added = with_sources(&["ls-files", "--others", "--exclude-standard", "--"])?;
    if changed.is_empty() && added.is_empty() {
        return Some(None);
    }
    let mut digest = DefaultHasher::new();
    changed.hash(&mut digest);
    for file in added.lines() {
        file.hash(&mut digest);
        std::fs::read(Path::new(file)).ok().hash(&mut digest);
    }
    Some(Some(digest.finish()))
}

/// What git says; `None` if there is no git, or it fails.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| text.trim().to_owned())
}
