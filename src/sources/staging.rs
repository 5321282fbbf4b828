//! Writes a folder atomically: it appears complete or not at all.
//!
//! The folder is filled under a temporary name beside its target and renamed when every file is on the disk. A run that
//! is killed leaves at most the temporary folder, which the next run for the same target recognises and removes.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::packed;
use crate::error::{Error, Result};

/// A folder that is being filled. Dropping it without [`Staging::publish`] removes it.
pub struct Staging {
    target: PathBuf,
    folder: PathBuf,
    /// The folder itself, locked. The lock ends with its process, so an unlocked folder is a leftover.
    _lock: File,
}

impl Staging {
    /// Prepares a folder for `target`, which must not exist, unless it is empty, or is a packed model and `replace` is
    /// set.
    ///
    /// # Errors
    /// [`Error::Config`] when the target exists or another process is writing it; [`Error::Io`] when it cannot be
    /// written.
    pub fn new(target: &Path, replace: bool) -> Result<Self> {
        let Some(name) = target.file_name() else {
            let problem = format!("{} is not a name for a new folder", target.display());
            return Err(Error::Config(problem));
        };
        check_place(target, replace)?;
        let parent = parent(target);
        fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
        let folder = parent.join(format!(".{}.partial", name.to_string_lossy()));
        if let Ok(left) = File::open(&folder) {
            lock(&left, &folder)?;
            remove(&folder)?;
        }
        fs::create_dir(&folder).map_err(|e| Error::io(&folder, e))?;
        let created = File::open(&folder).map_err(|e| Error::io(&folder, e))?;
        lock(&created, &folder)?;
        Ok(Self {
            target: target.into(),
            folder,
            _lock: created,
        })
    }

    /// The folder to write the files into.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Waits until every file is on the disk, and renames the folder to its target, replacing what was there.
    ///
    /// # Errors
    /// [`Error::Io`]; the target is then unchanged.
    pub fn publish(self) -> Result<()> {
        let failed = |e| Error::io(&self.folder, e);
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            sync(&path)?;
        }
        sync(&self.folder)?;
        let is_taken = fs::read_dir(&self.target).is_ok_and(|mut entries| entries.next().is_some());
        let renamed = match is_taken {
            true => exchange(&self.folder, &self.target),
            false => fs::rename(&self.folder, &self.target),
        };
        renamed.map_err(|e| Error::io(&self.target, e))?;
        sync(parent(&self.target))
        // Dropping `self` removes the old folder, which now has the temporary name.
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // A leftover is removed by the next run.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Refuses a target whose content must not be lost.
fn check_place(target: &Path, replace: bool) -> Result<()> {
    let refuse = |problem: &str| {
        let problem = format!("{} {problem}", target.display());
        Err(Error::Config(problem))
    };
    let is_there = target.symlink_metadata().is_ok();
    match fs::read_dir(target).map(|entries| entries.count()) {
        Err(_) if is_there => refuse("exists already and is not a folder"),
        Err(_) | Ok(0) => Ok(()),
        Ok(_) if !replace => refuse("exists already; --force replaces it"),
        Ok(_) if packed::is_packed(target) => Ok(()),
        Ok(_) => refuse("is not a packed model, so it is not replaced; remove it yourself"),
    }
}

fn lock(folder: &File, path: &Path) -> Result<()> {
    match folder.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let problem = format!("{} is being written by another run", path.display());
            Err(Error::Config(problem))
        }
        Err(TryLockError::Error(problem)) => Err(Error::io(path, problem)),
    }
}

fn remove(folder: &Path) -> Result<()> {
    fs::remove_dir_all(folder).map_err(|e| Error::io(folder, e))
}

fn sync(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(|e| Error::io(path, e))
}

/// The folder that a path lies in.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Exchanges two folders atomically: both names always lead to a complete one.
#[cfg(target_os = "linux")]
fn exchange(from: &Path, to: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE)?)
}

/// Elsewhere the target is absent for a moment; it is never incomplete.
#[cfg(not(target_os = "linux"))]
fn exchange(from: &Path, to: &Path) -> std::io::Result<()> {
    let aside = from.with_extension("old");
    fs::rename(to, &aside)?;
    fs::rename(from, to)?;
    fs::rename(aside, from)
}
