//! Slices that are divided among the compute threads along with the work: each thread gets its own part.

use std::marker::PhantomData;
use std::ops::Range;

/// Data that a phase divides among threads.
///
/// # Safety
/// Two calls of [`Parts::share`] with different threads and disjoint units must give disjoint memory, and `check` must
/// panic if any share would reach past the data.
pub unsafe trait Parts: Sync {
    /// The data of one thread.
    type Share;

    /// Panics unless the data has a share for each of `units` units and `threads` threads.
    fn check(&self, units: usize, threads: usize);

    /// The share of `units` on `thread`.
    ///
    /// # Safety
    /// `check` passed; while the share lives, no other share has the same thread or an overlapping range.
    unsafe fn share(&self, thread: usize, units: Range<usize>) -> Self::Share;
}

/// A slice with the same number of values for each unit.
pub struct PerUnit<'a, T> {
    data: *mut T,
    len: usize,
    each: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

impl<'a, T> PerUnit<'a, T> {
    /// `data` holds `each` values per unit.
    pub fn new(data: &'a mut [T], each: usize) -> Self {
        Self {
            data: data.as_mut_ptr(),
            len: data.len(),
            each,
            _borrow: PhantomData,
        }
    }
}

/// A slice with one value per thread.
pub struct PerThread<'a, T>(PerUnit<'a, T>);

impl<'a, T> PerThread<'a, T> {
    /// `data` holds one value per thread.
    pub fn new(data: &'a mut [T]) -> Self {
        Self(PerUnit::new(data, 1))
    }
}

// SAFETY: a share is a `&mut` to values that are `Send`, so another thread may have it.
unsafe impl<T: Send> Sync for PerUnit<'_, T> {}

// SAFETY: disjoint units have disjoint values, and `check` compares the size of all units with the length.
unsafe impl<'a, T: Send> Parts for PerUnit<'a, T> {
    type Share = &'a mut [T];

    fn check(&self, units: usize, _threads: usize) {
        // Checked arithmetic: a product that wraps around would let a share reach past the end.
        let needed = units.checked_mul(self.each);
        assert!(
            needed.is_some_and(|needed| needed <= self.len),
            "{units} units of {} in {} values",
            self.each,
            self.len
        );
    }

    unsafe fn share(&self, _thread: usize, units: Range<usize>) -> &'a mut [T] {
        // SAFETY: in range by `check`; by the caller's guarantee no other share has these units.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.data.add(units.start * self.each),
                units.len() * self.each,
            )
        }
    }
}

// SAFETY: each thread gets its own value, and `check` compares the number of threads with the length.
unsafe impl<'a, T: Send> Parts for PerThread<'a, T> {
    type Share = &'a mut T;

    fn check(&self, _units: usize, threads: usize) {
        assert!(threads <= self.0.len, "one value per thread");
    }

    unsafe fn share(&self, thread: usize, _units: Range<usize>) -> &'a mut T {
        // SAFETY: in range by `check`; by the caller's guarantee no other share has this thread.
        unsafe { &mut *self.0.data.add(thread) }
    }
}

// SAFETY: there is no data.
unsafe impl Parts for () {
    type Share = ();
    fn check(&self, _units: usize, _threads: usize) {}
    unsafe fn share(&self, _thread: usize, _units: Range<usize>) {}
}

macro_rules! parts_of_tuples {
    ($($name:ident . $index:tt),+) => {
        // SAFETY: each member keeps the guarantees for its own data.
        unsafe impl<$($name: Parts),+> Parts for ($($name,)+) {
            type Share = ($($name::Share,)+);
            fn check(&self, units: usize, threads: usize) {
                $(self.$index.check(units, threads);)+
            }
            unsafe fn share(&self, thread: usize, units: Range<usize>) -> Self::Share {
                // SAFETY: the caller's guarantee covers every member.
                unsafe { ($(self.$index.share(thread, units.clone()),)+) }
            }
        }
    };
}
parts_of_tuples!(A.0, B.1);
parts_of_tuples!(A.0, B.1, C.2);
parts_of_tuples!(A.0, B.1, C.2, D.3);
