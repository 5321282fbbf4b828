//! The id of a build, in every kind of place where one is made.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::tempdir;

#[path = "../../build.rs"]
#[expect(dead_code, reason = "cargo runs its main")]
mod script;

use script::build_id;

fn git(folder: &Path, arguments: &[&str]) {
    let mut git = Command::new("git");
    git.arg("-C").arg(folder);
    git.args(["-c", "user.name=a", "-c", "user.email=a@example.org"]);
    let output = git.args(arguments).output().expect("git is installed");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

/// Sources as the program has them, and what is no part of it.
fn write_sources(folder: &Path) {
    for (file, text) in [
        ("src/lib.rs", "one"),
        ("build.rs", ""),
        ("Cargo.toml", ""),
        ("Cargo.lock", ""),
        ("README.md", ""),
        (".gitignore", "/target\n"),
    ] {
        let file = folder.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
}

#[test]
fn a_build_of_a_checkout_is_named_by_its_commit_and_by_what_has_changed() {
    let folder = tempdir().unwrap();
    let folder = folder.path();
    let id = || build_id(folder, "");
    write_sources(folder);
    git(folder, &["init", "--quiet"]);
    git(folder, &["add", "."]);
    git(folder, &["commit", "--quiet", "--message=one"]);
    let clean = id();
    assert_eq!(clean.len(), 12);
    assert!(
        clean.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{clean}"
    );
    fs::write(folder.join("README.md"), "more").unwrap();
    assert_eq!(id(), clean, "a README is no part of the program");

    let mut ids = vec![clean.clone()];
    for text in ["two", "three"] {
        fs::write(folder.join("src/lib.rs"), text).unwrap();
        ids.push(id());
    }
    fs::write(folder.join("src/lib.rs"), "one").unwrap();
    for text in ["new", "newer"] {
        fs::write(folder.join("src/new.rs"), text).unwrap();
        ids.push(id());
    }
    for (at, id) in ids.iter().enumerate().skip(1) {
        assert!(id.starts_with(&format!("{clean}-dirty-")), "{id}");
        assert!(!ids[..at].contains(id), "{ids:?}");
    }
    git(folder, &["add", "src"]);
    git(folder, &["commit", "--quiet", "--message=two"]);
    let committed = id();
    assert!(committed.len() == 12 && committed != clean, "{committed}");

    // In a worktree `.git` is a file.
    let worktree = tempdir().unwrap();
    let path = worktree.path().join("worktree");
    git(
        folder,
        &[
            "worktree",
            "add",
            "--quiet",
            path.to_str().unwrap(),
            "-b",
            "other",
        ],
    );
    assert_eq!(build_id(&path, ""), committed);

    // A copy that the repository does not know, as in `cargo package`.
    let copy = folder.join("target/package");
    write_sources(&copy);
    assert_eq!(build_id(&copy, ""), "unknown");
    let record = "{\n  \"git\": {\n    \"sha1\": \"0123456789abcdef0123\"\n  }\n}";
    fs::write(copy.join(".cargo_vcs_info.json"), record).unwrap();
    assert_eq!(build_id(&copy, ""), "0123456789ab");
}

#[test]
fn a_build_without_a_checkout_is_named_by_the_variable_or_unknown() {
    let folder = tempdir().unwrap();
    write_sources(folder.path());
    assert_eq!(build_id(folder.path(), ""), "unknown");
    assert_eq!(build_id(folder.path(), "v1.2-rc.1_x"), "v1.2-rc.1_x");
    for bad in ["a b", "a\"b", "ä", &"x".repeat(65)] {
        let named = std::panic::catch_unwind(|| build_id(folder.path(), bad));
        assert!(named.is_err(), "{bad}");
    }
}
