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

/// A slice whose units have different numbers of values.
pub struct Ragged<'a, T> {
    data: *mut T,
    len: usize,
    each: usize,
    bounds: &'a [usize],
    _borrow: PhantomData<&'a mut [T]>,
}

impl<'a, T> Ragged<'a, T> {
    /// Unit `u` has the values `bounds[u] · each .. bounds[u + 1] · each` of `data`.
    pub fn new(data: &'a mut [T], each: usize, bounds: &'a [usize]) -> Self {
        Self {
            data: data.as_mut_ptr(),
            len: data.len(),
            each,
            bounds,
            _borrow: PhantomData,
        }
    }
}

// SAFETY: a share is a `&mut` to values that are `Send`, so another thread may have it.
unsafe impl<T: Send> Sync for Ragged<'_, T> {}

// SAFETY: `check` makes sure that the bounds ascend, so disjoint units have disjoint values, and that the last one is
// within the data.
unsafe impl<'a, T: Send> Parts for Ragged<'a, T> {
    type Share = &'a mut [T];

    fn check(&self, units: usize, _threads: usize) {
        let bounds = &self.bounds[..=units];
        assert!(bounds.is_sorted(), "bounds ascend");
        let needed = bounds[units].checked_mul(self.each);
        assert!(
            needed.is_some_and(|needed| needed <= self.len),
            "{} units of {} values in {}",
            bounds[units],
            self.each,
            self.len
        );
    }

    unsafe fn share(&self, _thread: usize, units: Range<usize>) -> &'a mut [T] {
        let (first, end) = (self.bounds[units.start], self.bounds[units.end]);
        // SAFETY: in range by `check`; by the caller's guarantee no other share has these units.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.data.add(first * self.each),
                (end - first) * self.each,
            )
        }
    }
}

/// A slice `[slots][units][each]`, of which a thread gets its units in every slot.
pub struct Slots<'a, T> {
    data: *mut T,
    slots: usize,
    units: usize,
    each: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

impl<'a, T> Slots<'a, T> {
    /// `data` is `[slots][units][each]` for as many slots as fit.
    pub fn new(data: &'a mut [T], units: usize, each: usize) -> Self {
        Self {
            slots: data.len() / (units * each),
            data: data.as_mut_ptr(),
            units,
            each,
            _borrow: PhantomData,
        }
    }
}

/// A thread's units in every slot.
pub struct SlotUnits<'a, T> {
    data: *mut T,
    slots: usize,
    units: usize,
    each: usize,
    own: Range<usize>,
    _borrow: PhantomData<&'a mut [T]>,
}

impl<T> SlotUnits<'_, T> {
    /// The values of unit `unit`, which is one of the thread's own, in slot `slot`.
    #[inline]
    pub fn get(&mut self, slot: usize, unit: usize) -> &mut [T] {
        assert!(slot < self.slots && self.own.contains(&unit), "own units");
        // SAFETY: `Slots` holds `slots · units · each` values, and both indices are in range; no other thread has this
        // unit, and `&mut self` prevents two references on this one.
        unsafe {
            let first = self.data.add((slot * self.units + unit) * self.each);
            std::slice::from_raw_parts_mut(first, self.each)
        }
    }

    /// Copies unit `unit` of slot `from` to slot `to`.
    pub fn copy(&mut self, from: usize, to: usize, unit: usize)
    where
        T: Copy,
    {
        assert_ne!(from, to, "another slot");
        let source: *const [T] = self.get(from, unit);
        // SAFETY: `get` checked the range; the values of different slots do not overlap, and nothing else refers to
        // those of `from` while `self` is borrowed.
        let source = unsafe { &*source };
        self.get(to, unit).copy_from_slice(source);
    }
}

// SAFETY: a share reaches only its own units, whose values are `Send`.
unsafe impl<T: Send> Sync for Slots<'_, T> {}

// SAFETY: a share reaches only its own units, in every slot; `check` compares their number with that of the data.
unsafe impl<'a, T: Send> Parts for Slots<'a, T> {
    type Share = SlotUnits<'a, T>;

    fn check(&self, units: usize, _threads: usize) {
        assert!(units <= self.units, "{units} units of {}", self.units);
    }

    unsafe fn share(&self, _thread: usize, units: Range<usize>) -> SlotUnits<'a, T> {
        SlotUnits {
            data: self.data,
            slots: self.slots,
            units: self.units,
            each: self.each,
            own: units,
            _borrow: PhantomData,
        }
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
