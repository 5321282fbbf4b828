//! Memory for weights: anonymous pages, huge ones where the system gives them.

use memmap2::{Advice, MmapMut};

/// A page-aligned stretch of memory of its own, zeroed.
///
/// A decoding step walks through all weights once. With 4 KiB pages that is 600,000 address translations for a 2B model,
/// each a walk through two sets of page tables on a virtual machine; 2 MiB pages need 1,200.
pub struct Memory(MmapMut);

impl Memory {
    /// Maps `len` bytes, which are committed as they are first written.
    ///
    /// # Panics
    /// If the system refuses the address space.
    pub fn zeroed(len: usize) -> Self {
        // An empty mapping is an error, and a model has no empty matrix.
        let map = MmapMut::map_anon(len.max(1)).expect("the system refuses memory for weights");
        #[cfg(target_os = "linux")]
        // Only advice: without huge pages everything works, a little slower.
        let _ = map.advise(Advice::HugePage);
        Self(map)
    }

    /// The bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
