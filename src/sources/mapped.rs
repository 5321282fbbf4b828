//! A read-only memory map of a model file: the one place outside the kernels where `unsafe` is allowed.

#![expect(unsafe_code, reason = "mapping a file is unsafe; see `Mapped::open`")]

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap};

use crate::error::{Error, Result};

/// The bytes of a file, paged in as they are read and shared with every process that maps the same file.
pub struct Mapped {
    path: PathBuf,
    map: Mmap,
}

impl Mapped {
    /// Maps the regular file at `path`.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is missing, unreadable or not a regular file, [`Error::BadModel`] when it is empty,
    /// and [`Error::Io`] when the system refuses the map.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::not_found(path, e))?;
        let metadata = file.metadata().map_err(|e| Error::io(path, e))?;
        if !metadata.is_file() {
            return Err(Error::not_found(path, "not a regular file"));
        }
        if metadata.len() == 0 {
            return Err(Error::bad_model(path, "file", "is empty"));
        }
        // SAFETY: the bytes behind a map must not change or shrink while it lives. This program never writes to a
        // model file in place: downloads and packed models are written under another name and renamed, which leaves an
        // existing map on the old file. Whoever operates the service must do the same when replacing a model, and
        // the README says so; truncating the file under a running server ends it with SIGBUS, as it does for every
        // server that maps its weights. All readers here treat the bytes as untrusted numbers, so a changed value
        // can make an answer wrong but not an access out of bounds.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(Self {
            path: path.into(),
            map,
        })
    }

    /// The file that is mapped.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Brings the bytes `range` into memory and maps them, so that no later access waits for the disk or faults.
    pub fn populate(&self, range: Range<usize>) {
        // Kernels before 5.14 refuse, and then a page is mapped when it is first read.
        #[cfg(target_os = "linux")]
        let _ = self
            .map
            .advise_range(Advice::PopulateRead, range.start, range.len());
        #[cfg(not(target_os = "linux"))]
        let _ = self
            .map
            .advise_range(Advice::WillNeed, range.start, range.len());
    }

    /// Tells the system that the file will be read from front to back, so that it reads ahead generously.
    pub fn read_ahead(&self) {
        // Only a hint: a kernel that refuses it still serves the pages.
        let _ = self.map.advise(Advice::Sequential);
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
