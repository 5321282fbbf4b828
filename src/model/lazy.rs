//! Memory that is allocated when it is first written.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::{Advice, MmapMut};

/// Zeros aligned to cache lines, whose memory is allocated when it is first written. Small pages are used: a sequence
/// writes a little to each head of each layer, which with huge pages would allocate gigabytes at once.
pub struct Lazy<T> {
    map: MmapMut,
    kind: PhantomData<T>,
}

impl<T: Pod> Lazy<T> {
    /// Reserves `len` values.
    ///
    /// # Errors
    /// If the system cannot provide the address space.
    pub fn zeroed(len: usize) -> std::io::Result<Self> {
        // Mapping 0 bytes is an error.
        let bytes = len.max(1) * size_of::<T>();
        let map = MmapMut::map_anon(bytes)?;
        #[cfg(target_os = "linux")]
        // The advice may fail: a system that uses huge pages anyway allocates more at once, but never more than is
        // reserved.
        let _ = map.advise(Advice::NoHugePage);
        let kind = PhantomData;
        Ok(Self { map, kind })
    }
}

impl<T: Pod> Deref for Lazy<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // `zeroed(0)` maps one value.
        bytemuck::cast_slice(&self.map)
    }
}

impl<T: Pod> DerefMut for Lazy<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.map)
    }
}
