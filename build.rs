//! Gives the build an id, so that no two different builds have the same: `BUILD_ID`, which `src/build.rs` publishes.
//!
//! `MICROGRANITE_BUILD` is the id where it is set, as in container builds, which have no `.git`. Otherwise it is the
//! commit, followed by `-dirty-` and a digest of the changes if the sources differ from it; or the commit that a package
//! was made from; or `unknown`.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The files and folders that the program is built from.
const SOURCES: [&str; 4] = ["src", "build.rs", "Cargo.toml", "Cargo.lock"];
/// Digits of a commit: enough for the largest repositories.
const COMMIT_DIGITS: usize = 12;
/// The longest id in bytes. It is part of log lines, metric labels and answers.
const MAX_ID: usize = 64;

fn main() {
    let folder = Path::new(".");
    println!("cargo::rerun-if-env-changed=MICROGRANITE_BUILD");
    // Without these lines, cargo would run this script and compile the crate again after a change to any file at all.
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    // A commit does not change the sources, so development builds are not repeated after each one. Release builds are.
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        for file in head_files(folder) {
            println!("cargo::rerun-if-changed={}", file.display());
        }
    }
    let given = env::var("MICROGRANITE_BUILD").unwrap_or_default();
    println!("cargo::rustc-env=BUILD_ID={}", build_id(folder, &given));
}

/// The id of a build in `folder`; `given` is the value of `MICROGRANITE_BUILD`.
///
/// # Panics
/// If `given` cannot be part of a label or of an answer.
pub fn build_id(folder: &Path, given: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    assert!(
        given.len() <= MAX_ID && given.bytes().all(is_plain),
        "MICROGRANITE_BUILD may have at most {MAX_ID} letters, digits, dots, underscores and hyphens"
    );
    if !given.is_empty() {
        return given.to_owned();
    }
    let id = commit(folder).or_else(|| packaged(folder));
    id.unwrap_or_else(|| "unknown".to_owned())
}

/// The id of the commit that is checked out, with a digest of the changes since.
fn commit(folder: &Path) -> Option<String> {
    // If the sources are an untracked copy inside another repository, as during `cargo package`, that repository's
    // commit is not theirs.
    git(folder, &["ls-files", "--error-unmatch", "build.rs"])?;
    let head = git(folder, &["rev-parse", "HEAD"])?;
    let mut id = head.get(..COMMIT_DIGITS)?.to_owned();
    if let Some(digest) = changes(folder)? {
        id += &format!("-dirty-{:08x}", digest as u32);
    }
    Some(id)
}

/// The commit that cargo recorded when it packaged the sources.
fn packaged(folder: &Path) -> Option<String> {
    let record = std::fs::read_to_string(folder.join(".cargo_vcs_info.json")).ok()?;
    let (_, rest) = record.split_once("\"sha1\": \"")?;
    let dirty = match record.contains("\"dirty\": true") {
        true => "-dirty",
        false => "",
    };
    Some(rest.get(..COMMIT_DIGITS)?.to_owned() + dirty)
}

/// The files that change when another commit is checked out or made. In a worktree `HEAD` and its log are in a folder of
/// their own, and the branches in the repository's.
fn head_files(folder: &Path) -> Vec<PathBuf> {
    let mut names = vec!["HEAD".to_owned(), "logs/HEAD".to_owned()];
    names.extend(git(folder, &["symbolic-ref", "--quiet", "HEAD"]));
    let path = |name: &String| git(folder, &["rev-parse", "--git-path", name]);
    let paths = names.iter().filter_map(path).map(PathBuf::from);
    // cargo treats a missing file as changed.
    paths.filter(|path| folder.join(path).exists()).collect()
}

/// A digest of the differences between the sources and the commit, new files included. The inner `None` means that there
/// are none, the outer one that git cannot tell.
fn changes(folder: &Path) -> Option<Option<u64>> {
    let of_sources = |arguments: &[&'static str]| git(folder, &[arguments, &SOURCES].concat());
    let changed = of_sources(&["diff", "--binary", "HEAD", "--"])?;
    let added = of_sources(&["ls-files", "--others", "--exclude-standard", "--"])?;
    if changed.is_empty() && added.is_empty() {
        return Some(None);
    }
    let mut digest = DefaultHasher::new();
    changed.hash(&mut digest);
    for file in added.lines() {
        file.hash(&mut digest);
        std::fs::read(folder.join(file)).ok().hash(&mut digest);
    }
    Some(Some(digest.finish()))
}

/// The output of git; `None` if it fails or is not installed.
fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    let command = Command::new("git")
        .arg("-C")
        .arg(folder)
        .args(arguments)
        .output();
    let output = command.ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| text.trim().to_owned())
}
