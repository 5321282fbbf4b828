//! Memory that is allocated when it is first written.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::{Advice, MmapMut};

use crate::memory::maps::Addresses;

/// Zeros aligned to cache lines, whose memory is allocated when it is first written.
pub struct Lazy<T> {
    map: MmapMut,
    kind: PhantomData<T>,
}

impl<T: Pod> Lazy<T> {
    /// Reserves `len` values in small pages: for what is written a little here and a little there, such as the keys and
    /// values of a sequence in each head of each layer. With huge pages that would allocate gigabytes at once.
    ///
    /// # Errors
    /// If the system cannot provide the address space.
    pub fn in_small_pages(len: usize) -> std::io::Result<Self> {
        Self::zeroed(len, false)
    }

    /// Reserves `len` values in huge pages: for what is read and written in long pieces.
    ///
    /// # Errors
    /// If the system cannot provide the address space.
    pub fn in_huge_pages(len: usize) -> std::io::Result<Self> {
        Self::zeroed(len, true)
    }

    #[cfg_attr(
        not(target_os = "linux"),
        expect(unused_variables, reason = "pages have one size")
    )]
    fn zeroed(len: usize, huge: bool) -> std::io::Result<Self> {
        // Mapping 0 bytes is an error.
        let bytes = len.max(1) * size_of::<T>();
        let map = MmapMut::map_anon(bytes)?;
        #[cfg(target_os = "linux")]
        // The advice may fail: with small pages everything works, a little slower, and a system that uses huge pages
        // anyway allocates more at once, but never more than is reserved.
        let _ = map.advise(if huge {
            Advice::HugePage
        } else {
            Advice::NoHugePage
        });
        let kind = PhantomData;
        Ok(Self { map, kind })
    }
}

impl<T> Lazy<T> {
    /// Where the memory is.
    pub fn addresses(&self) -> Addresses {
        let all = self.map.as_ptr_range();
        all.start as u64..all.end as u64
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
