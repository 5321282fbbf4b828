//! Memory for weights: anonymous memory, in huge pages if the system provides them, or shared bytes such as a part of a
//! mapped file.

use std::ops::Range;
use std::sync::Arc;

use memmap2::{Advice, MmapMut};

use crate::config::ByteSize;
use crate::error::{Error, Result};

/// A range of memory that holds weights.
pub struct Memory(Bytes);

enum Bytes {
    Own(MmapMut),
    Shared(Arc<dyn AsRef<[u8]> + Send + Sync>, Range<usize>),
}

impl Memory {
    /// Maps `len` zeroed bytes of anonymous memory; a page is allocated when it is first written.
    ///
    /// A decoding step reads all weights once. With 4 KiB pages that takes 600,000 address translations for a 2B model,
    /// each of which walks two sets of page tables on a virtual machine; with 2 MiB pages it takes 1,200.
    ///
    /// # Errors
    /// [`Error::Config`] if the system cannot provide the address space.
    pub fn zeroed(len: usize) -> Result<Self> {
        // Mapping 0 bytes is an error; no model has an empty matrix, so the extra byte is never used.
        let map = MmapMut::map_anon(len.max(1)).map_err(|problem| {
            let size = ByteSize(len as u64);
            Error::Config(format!("no memory for {size} of weights: {problem}"))
        })?;
        #[cfg(target_os = "linux")]
        // The advice may fail: without huge pages everything works, a little slower.
        let _ = map.advise(Advice::HugePage);
        Ok(Self(Bytes::Own(map)))
    }

    /// The bytes `range` of `bytes`, such as a mapped file. They are not read now, and they are shared with other
    /// holders of `bytes`.
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

    /// The addresses of the shared bytes of which these are a part, such as those of a whole mapped file; `None` for
    /// memory of its own.
    pub fn shared_with(&self) -> Option<Range<u64>> {
        match &self.0 {
            Bytes::Own(_) => None,
            Bytes::Shared(bytes, _) => {
                let all = (**bytes).as_ref().as_ptr_range();
                Some(all.start as u64..all.end as u64)
            }
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
