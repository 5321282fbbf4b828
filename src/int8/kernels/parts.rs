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

/// Parts whose shares depend on the units alone and not on the thread, so that one thread may have several at once.
///
/// # Safety
/// [`Parts::share`] with disjoint units must give disjoint memory, whatever the threads.
pub unsafe trait UnitParts: Parts {}

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

/// A slice `[slots][stride]`, each of whose slots has `[units][each]` somewhere: a thread gets its units in every slot.
pub struct Slots<'a, T> {
    data: *mut T,
    slots: usize,
    stride: usize,
    units: usize,
    each: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

impl<'a, T> Slots<'a, T> {
    /// As many slots of `stride` values as there are in `data`, in each of which `units` units of `each` values begin at
    /// `first`.
    ///
    /// # Panics
    /// If a slot is too short for them.
    pub fn new(data: &'a mut [T], stride: usize, first: usize, [units, each]: [usize; 2]) -> Self {
        // Checked arithmetic: a product that wraps around would let a unit reach past the end.
        let end = (units.checked_mul(each)).and_then(|len| len.checked_add(first));
        assert!(
            stride > 0 && end.is_some_and(|end| end <= stride),
            "{units} units of {each} from {first} on in slots of {stride}"
        );
        let slots = data.len() / stride;
        // Without slots there is nothing behind the pointer, and nothing that reaches it.
        let first = if slots > 0 { first } else { 0 };
        Self {
            data: data[first..].as_mut_ptr(),
            slots,
            stride,
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
    stride: usize,
    each: usize,
    own: Range<usize>,
    _borrow: PhantomData<&'a mut [T]>,
}

impl<T> SlotUnits<'_, T> {
    /// The values of unit `unit`, which is one of the thread's own, in slot `slot`.
    #[inline]
    pub fn get(&mut self, slot: usize, unit: usize) -> &mut [T] {
        assert!(slot < self.slots && self.own.contains(&unit), "own units");
        // SAFETY: `Slots::new` compared the units with the length of a slot, and both indices are in range; no other
        // thread has this unit, and `&mut self` prevents two references on this one.
        unsafe {
            let first = self.data.add(slot * self.stride + unit * self.each);
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
            stride: self.stride,
            each: self.each,
            own: units,
            _borrow: PhantomData,
        }
    }
}

/// Parts that only some of the units have: a thread gets those of its own units that are among them.
pub struct Within<P> {
    parts: P,
    units: Range<usize>,
}

impl<P> Within<P> {
    /// The first unit of `parts` is the first of `units`, and so on.
    pub const fn new(parts: P, units: Range<usize>) -> Self {
        Self { parts, units }
    }
}

// SAFETY: what disjoint ranges have in common with `units` is disjoint, and `check` asks for all of `units`.
unsafe impl<P: Parts> Parts for Within<P> {
    type Share = P::Share;

    fn check(&self, _units: usize, threads: usize) {
        self.parts.check(self.units.len(), threads);
    }

    unsafe fn share(&self, thread: usize, units: Range<usize>) -> P::Share {
        let Range { start, end } = self.units;
        let own = units.start.clamp(start, end) - start..units.end.clamp(start, end) - start;
        // SAFETY: by the caller's guarantee, and because `own` is within what `check` asked for.
        unsafe { self.parts.share(thread, own) }
    }
}

// SAFETY: disjoint units have disjoint values in each of these.
unsafe impl<T: Send> UnitParts for PerUnit<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> UnitParts for Ragged<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> UnitParts for Slots<'_, T> {}
// SAFETY: as above.
unsafe impl<P: UnitParts> UnitParts for Within<P> {}
// SAFETY: there is no data.
unsafe impl UnitParts for () {}

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

        // SAFETY: as above.
        unsafe impl<$($name: UnitParts),+> UnitParts for ($($name,)+) {}
    };
}
parts_of_tuples!(A.0, B.1);
parts_of_tuples!(A.0, B.1, C.2);
parts_of_tuples!(A.0, B.1, C.2, D.3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_slots_begin_where_they_are_said_to() {
        let mut data: Vec<usize> = (0..30).collect();
        let slots = Slots::new(&mut data, 10, 2, [3, 2]);
        slots.check(3, 1);
        // SAFETY: checked, and the only share.
        let mut share = unsafe { slots.share(0, 1..3) };
        assert_eq!(share.get(0, 1), [4, 5]);
        assert_eq!(share.get(2, 2), [26, 27]);
        share.copy(2, 1, 2);
        assert_eq!(data[16..18], [26, 27]);
    }

    #[test]
    #[should_panic(expected = "3 units of 3 from 2 on in slots of 10")]
    fn slots_too_short_for_their_units_are_refused() {
        Slots::new(&mut [0u8; 30], 10, 2, [3, 3]);
    }

    #[test]
    fn parts_of_some_units_are_shared_by_those() {
        let mut data = [0, 1, 2, 3, 4, 5];
        let parts = Within::new(PerUnit::new(&mut data, 2), 10..13);
        parts.check(20, 1);
        for (units, values) in [
            (0..11, 0..2),
            (11..12, 2..4),
            (12..20, 4..6),
            (14..20, 6..6),
        ] {
            // SAFETY: checked, and the shares are disjoint.
            let share = unsafe { parts.share(0, units) };
            assert!(share.iter().copied().eq(values));
        }
    }
}
