//! A read-only memory map of a model file: the one place outside the kernels where `unsafe` is allowed.

#![expect(
    unsafe_code,
    reason = "mapping a file is unsafe, see `Mapped::open`, and so is hearing of its end, see `explain_bus_errors`"
)]

use std::fs::{File, Metadata};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};
use std::time::SystemTime;

use memmap2::{Advice, Mmap};

use crate::error::{Error, Result};

/// The bytes of a file, paged in on first access and shared with every process that maps the same file.
pub struct Mapped {
    path: PathBuf,
    map: Mmap,
    /// The open file that is mapped: a different one may be at the path by now.
    file: File,
    /// The file's modification time at the last check.
    modified: Mutex<Option<SystemTime>>,
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

/// What happened to a mapped file since the last check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// Something was written, possibly the same bytes.
    Written,
    /// It is shorter than its map: reading past its end ends the process.
    Shrunk,
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
        // SAFETY: the bytes behind a map must not change or shrink while it lives. This program never writes to a model
        // file in place: downloads and packed models are written under another name and renamed, which leaves an
        // existing map on the old file. Operators must do the same when they replace a model, as docs/quantization.md
        // says; truncating the file under a running server ends it, with a message. All readers here treat the bytes as
        // untrusted numbers, so a changed value can make an answer wrong but cannot cause an access out of bounds.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        explain_bus_errors();
        Ok(Self {
            path: path.into(),
            map,
            modified: Mutex::new(modified(&metadata)),
            file,
        })
    }

    /// What happened to the file since the last check, or since it was opened. If its state cannot be read, as when a
    /// file server is gone, it counts as unchanged.
    pub fn change(&self) -> Change {
        let Ok(metadata) = self.file.metadata() else {
            return Change::None;
        };
        if metadata.len() < self.map.len() as u64 {
            return Change::Shrunk;
        }
        let mut last = self.modified.lock().unwrap_or_else(PoisonError::into_inner);
        let now = modified(&metadata);
        match std::mem::replace(&mut *last, now) == now {
            true => Change::None,
            false => Change::Written,
        }
    }

    /// The file that is mapped.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the bytes `range` into memory and maps their pages, so that no later access waits for the disk or faults.
    pub(crate) fn populate(&self, range: Range<usize>) {
        // Linux before 5.14 refuses, and then each page is mapped when it is first read.
        #[cfg(target_os = "linux")]
        let _ = self
            .map
            .advise_range(Advice::PopulateRead, range.start, range.len());
        #[cfg(not(target_os = "linux"))]
        let _ = self
            .map
            .advise_range(Advice::WillNeed, range.start, range.len());
    }

    /// Tells the system that the file will be read from front to back, so that it prefetches generously.
    pub(crate) fn read_ahead(&self) {
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

fn modified(metadata: &Metadata) -> Option<SystemTime> {
    metadata.modified().ok()
}

/// `EX_IOERR`, as for every other failure to read.
#[cfg(unix)]
const EXIT_IO: libc::c_int = 74;

/// Makes SIGBUS end the process with a message and an exit code. The system sends it on access to a mapped page that is
/// past the end of the file or that the disk cannot deliver. The process cannot continue: the instruction would fault
/// again.
fn explain_bus_errors() {
    #[cfg(unix)]
    {
        const MESSAGE: &[u8] = b"error: a page of a mapped model file cannot be read: \
            the file became shorter while it was in use, or its disk fails (SIGBUS)\n";
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let say_and_end = || {
                let mut stderr = libc::pollfd {
                    fd: libc::STDERR_FILENO,
                    events: libc::POLLOUT,
                    revents: 0,
                };
                // SAFETY: `stderr` and `MESSAGE` outlive the calls, and the lengths are theirs. A signal handler must
                // not take locks or allocate; POSIX lists poll, write and _exit as safe in one.
                unsafe {
                    // Standard error may have no reader; then only the exit code tells.
                    if libc::poll(&raw mut stderr, 1, 0) > 0 {
                        libc::write(libc::STDERR_FILENO, MESSAGE.as_ptr().cast(), MESSAGE.len());
                    }
                    libc::_exit(EXIT_IO)
                }
            };
            // SAFETY: the handler only does what is safe in one, see above. It runs after the handler of the standard
            // library, which reports stack overflows and returns for everything else.
            let registered = unsafe { signal_hook_registry::register(libc::SIGBUS, say_and_end) };
            if let Err(error) = registered {
                tracing::debug!(%error, "SIGBUS will have no message");
            }
        });
    }
}
