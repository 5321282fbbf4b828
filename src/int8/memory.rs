//! Memory for weights: pages of our own, huge ones where the system gives them, or a part of a mapped file.

use std::ops::Range;
use std::sync::Arc;

use memmap2::{Advice, MmapMut};

use crate::config::ByteSize;
use crate::error::{Error, Result};
use crate::sources::Mapped;

/// A stretch of memory that holds weights.
pub struct Memory(Place);

enum Place {
    Own(MmapMut),
    File(Arc<Mapped>, Range<usize>),
}

impl Memory {
    /// Maps `len` bytes of its own, zeroed, which are committed as they are first written.
    ///
    /// A decoding step walks through all weights once. With 4 KiB pages that is 600,000 address translations for a 2B
    /// model, each a walk through two sets of page tables on a virtual machine; 2 MiB pages need 1,200.
    ///
    /// # Errors
    /// [`Error::Config`] if the system refuses the address space.
    pub fn zeroed(len: usize) -> Result<Self> {
        // An empty mapping is an error, and a model has no empty matrix.
        let map = MmapMut::map_anon(len.max(1)).map_err(|problem| {
            let size = ByteSize(len as u64);
            Error::Config(format!("no memory for {size} of weights: {problem}"))
        })?;
        #[cfg(target_os = "linux")]
        // Only advice: without huge pages everything works, a little slower.
        let _ = map.advise(Advice::HugePage);
        Ok(Self(Place::Own(map)))
    }

    /// The bytes `range` of a mapped file: nothing is read now, and every process that maps the file shares the pages.
    ///
    /// # Panics
    /// If the range reaches past the file.
    pub fn of_file(file: Arc<Mapped>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= file.len(), "range");
        Self(Place::File(file, range))
    }

    /// The bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Place::Own(map) => map,
            Place::File(file, range) => &file[range.clone()],
        }
    }

    /// The bytes, to be filled.
    ///
    /// # Panics
    /// If they are those of a file.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Place::Own(map) => map,
            Place::File(..) => panic!("a mapped file is read-only"),
        }
    }
}
