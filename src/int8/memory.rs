//! Memory for weights: pages of our own, huge ones where the system gives them, or bytes that others share, such as a part
//! of a mapped file.

use std::ops::Range;
use std::sync::Arc;

use memmap2::{Advice, MmapMut};

use crate::config::ByteSize;
use crate::error::{Error, Result};

/// A stretch of memory that holds weights.
pub struct Memory(Bytes);

enum Bytes {
    Own(MmapMut),
    Shared(Arc<dyn AsRef<[u8]> + Send + Sync>, Range<usize>),
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
        Ok(Self(Bytes::Own(map)))
    }

    /// The bytes `range` of `bytes`, such as a mapped file: nothing is read now, and whoever else holds them shares them.
    ///
    /// # Panics
    /// If the range reaches past the bytes.
    pub fn shared(bytes: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Self {
        let len = (*bytes).as_ref().len();
        assert!(range.start <= range.end && range.end <= len, "range");
        Self(Bytes::Shared(bytes, range))
    }

    /// The bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Own(map) => map,
            Bytes::Shared(bytes, range) => &(**bytes).as_ref()[range.clone()],
        }
    }

    /// The bytes, to be filled.
    ///
    /// # Panics
    /// If they are shared.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Bytes::Own(map) => map,
            Bytes::Shared(..) => panic!("shared bytes are read-only"),
        }
    }
}
