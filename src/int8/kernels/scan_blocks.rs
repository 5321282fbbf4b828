//! [`Kernel::scan`](super::Kernel::scan) with vector registers. A block of the state stays in registers over many rows,
//! which the compiler does not arrange by itself. Each element's operations are those of [`super::recurrence`] in the
//! same order, so the bits are the same.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::super::PANEL;
use super::recurrence::{self, Functions, Scan};

/// All functions of the instruction set.
#[cfg(target_arch = "x86_64")]
pub(super) const AVX2: Functions = Functions {
    scan: avx2,
    ..recurrence::AVX2
};

/// All functions of the instruction set.
#[cfg(target_arch = "x86_64")]
pub(super) const AVX512: Functions = Functions {
    scan: avx512,
    ..recurrence::AVX512
};

/// All functions of the instruction set.
#[cfg(target_arch = "aarch64")]
pub(super) const NEON: Functions = Functions {
    scan: neon,
    ..recurrence::PORTABLE
};

/// Rows that a block stays in registers for: what they need besides the state fits the first-level cache.
const ROWS: usize = 32;

/// Values of all columns for that many rows, aligned so that no load crosses a cache line.
#[repr(align(64))]
struct Buffer {
    _values: [f32; ROWS * PANEL],
}

/// # Safety
/// `scan` was checked by [`super::Kernel::scan`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(scan: Scan<'_>) {
    if scan.width == PANEL && scan.steps.len() == 1 {
        // What counts for one row is to read the state in the order of memory, and blocks are narrower than its rows.
        return recurrence::scan_columns::<PANEL>(scan);
    }
    // Eight of sixteen registers hold the state, and each value of `b` and `c` that is loaded serves two of them.
    // SAFETY: the caller guarantees the lengths, this function the features.
    unsafe { run::<__m256, 4, 2>(scan) }
}

/// # Safety
/// `scan` was checked by [`super::Kernel::scan`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
unsafe fn avx512(scan: Scan<'_>) {
    // Sixteen of 32 registers hold whole rows of the state, so that it is read in the order of memory.
    // SAFETY: the caller guarantees the lengths, this function the features.
    unsafe {
        match scan.width {
            16 => run::<__m512, 16, 1>(scan),
            32 => run::<__m512, 8, 2>(scan),
            _ => run::<__m512, 4, 4>(scan),
        }
    }
}

/// # Safety
/// `scan` was checked by [`super::Kernel::scan`].
#[cfg(target_arch = "aarch64")]
unsafe fn neon(scan: Scan<'_>) {
    if scan.width == PANEL && scan.steps.len() == 1 {
        // As in `avx2`: one row reads the state in the order of memory.
        return recurrence::scan_columns::<PANEL>(scan);
    }
    // Sixteen of 32 registers hold the state; sixteen columns fit every width.
    // SAFETY: the caller guarantees the lengths, and every CPU of this architecture has the registers.
    unsafe { run::<float32x4_t, 4, 4>(scan) }
}

/// A vector register of floats. Its functions may be used only on a CPU that has it, and pointers must hold
/// [`Lanes::COUNT`] values.
///
/// There is no `#[target_feature]` here, because it cannot be combined with `#[inline(always)]`.
trait Lanes: Copy {
    const COUNT: usize;
    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn mul(self, factor: Self) -> Self;
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self;
}

#[cfg(target_arch = "x86_64")]
macro_rules! lanes {
    ($register:ident, $count:literal, $zero:ident, $splat:ident, $load:ident, $store:ident, $mul:ident, $mul_add:ident) => {
        impl Lanes for $register {
            const COUNT: usize = $count;

            #[inline(always)]
            unsafe fn zero() -> Self {
                // SAFETY: guaranteed by the caller, as in the functions below.
                unsafe { $zero() }
            }

            #[inline(always)]
            unsafe fn splat(value: f32) -> Self {
                // SAFETY: as above.
                unsafe { $splat(value) }
            }

            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                // SAFETY: as above.
                unsafe { $load(from) }
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                // SAFETY: as above.
                unsafe { $store(to, self) }
            }

            #[inline(always)]
            unsafe fn mul(self, factor: Self) -> Self {
                // SAFETY: as above.
                unsafe { $mul(self, factor) }
            }

            #[inline(always)]
            unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
                // SAFETY: as above.
                unsafe { $mul_add(self, factor, sum) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
lanes!(
    __m256,
    8,
    _mm256_setzero_ps,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_mul_ps,
    _mm256_fmadd_ps
);

#[cfg(target_arch = "x86_64")]
lanes!(
    __m512,
    16,
    _mm512_setzero_ps,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_mul_ps,
    _mm512_fmadd_ps
);

#[cfg(target_arch = "aarch64")]
impl Lanes for float32x4_t {
    const COUNT: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: guaranteed by the caller, as in the functions below.
        unsafe { vdupq_n_f32(0.0) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: as above.
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as above.
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above.
        unsafe { vst1q_f32(to, self) }
    }

    #[inline(always)]
    unsafe fn mul(self, factor: Self) -> Self {
        // SAFETY: as above.
        unsafe { vmulq_f32(self, factor) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
        // SAFETY: as above. The instruction takes the sum first.
        unsafe { vfmaq_f32(sum, self, factor) }
    }
}

/// Runs the scan in blocks of `N` times `C` vectors of the state.
///
/// # Safety
/// `scan` was checked by [`super::Kernel::scan`], its width is a multiple of `C` vectors, and the CPU has the vectors.
#[inline(always)]
unsafe fn run<V: Lanes, const N: usize, const C: usize>(scan: Scan<'_>) {
    let width = scan.width;
    let states = scan.state.len() / width;
    let state = scan.state.as_mut_ptr();
    // `steps · x` and `y` of some rows, `[width / columns][ROWS][columns]`. They are written before they are read.
    let columns = C * V::COUNT;
    let mut entering = MaybeUninit::<Buffer>::uninit();
    let mut sums = MaybeUninit::<Buffer>::uninit();
    let entering: *mut f32 = entering.as_mut_ptr().cast();
    let sums: *mut f32 = sums.as_mut_ptr().cast();
    let chunks = scan.steps.chunks(ROWS).zip(scan.decays.chunks(ROWS));
    for (chunk, (steps, decays)) in chunks.enumerate() {
        let first = chunk * ROWS * PANEL;
        // SAFETY: guaranteed by the caller.
        unsafe {
            let x = scan.x.as_mut_ptr().add(first);
            let at = |t: usize, p: usize| {
                let slot = (p / columns * ROWS + t) * columns + p % columns;
                (x.add(t * PANEL + p), slot)
            };
            for (t, step) in steps.iter().enumerate() {
                for p in (0..width).step_by(V::COUNT) {
                    let (x, slot) = at(t, p);
                    V::splat(*step).mul(V::load(x)).store(entering.add(slot));
                    V::zero().store(sums.add(slot));
                }
            }
            for n in (0..states).step_by(N) {
                let from = n / PANEL * scan.panel_stride + first + n % PANEL;
                for p in (0..width).step_by(columns) {
                    Block {
                        state: state.add(n * width + p),
                        width,
                        b: scan.b.as_ptr().add(from),
                        c: scan.c.as_ptr().add(from),
                        entering: entering.add(p * ROWS),
                        sums: sums.add(p * ROWS),
                    }
                    .run::<V, N, C>(decays);
                }
            }
            let skip = V::splat(scan.skip);
            for t in 0..steps.len() {
                for p in (0..width).step_by(V::COUNT) {
                    let (x, slot) = at(t, p);
                    skip.mul_add(V::load(x), V::load(sums.add(slot))).store(x);
                }
            }
        }
    }
}

/// The operands of a block of the state. Rows of `state` are `width` apart, rows of `b` and `c` a panel's width; rows
/// of `entering` and `sums` are as long as the block is wide.
struct Block {
    state: *mut f32,
    width: usize,
    b: *const f32,
    c: *const f32,
    entering: *const f32,
    sums: *mut f32,
}

impl Block {
    /// Runs `N` times `C` vectors of the state over as many rows as there are `decays`.
    ///
    /// # Safety
    /// The pointers hold this block and that many rows, and the CPU has the vectors.
    #[inline(always)]
    unsafe fn run<V: Lanes, const N: usize, const C: usize>(&self, decays: &[f32]) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let slot = |n: usize, c: usize| self.state.add(n * self.width + c * V::COUNT);
            let mut state = [[V::zero(); C]; N];
            for (n, state) in state.iter_mut().enumerate() {
                for (c, state) in state.iter_mut().enumerate() {
                    *state = V::load(slot(n, c));
                }
            }
            for (t, decay) in decays.iter().enumerate() {
                let row = |c: usize| (t * C + c) * V::COUNT;
                let decay = V::splat(*decay);
                let (mut entering, mut sums) = ([V::zero(); C], [V::zero(); C]);
                for c in 0..C {
                    entering[c] = V::load(self.entering.add(row(c)));
                    sums[c] = V::load(self.sums.add(row(c)));
                }
                for (n, state) in state.iter_mut().enumerate() {
                    let enters = V::splat(*self.b.add(t * PANEL + n));
                    let leaves = V::splat(*self.c.add(t * PANEL + n));
                    for c in 0..C {
                        state[c] = entering[c].mul_add(enters, state[c].mul(decay));
                        sums[c] = state[c].mul_add(leaves, sums[c]);
                    }
                }
                for (c, sum) in sums.into_iter().enumerate() {
                    sum.store(self.sums.add(row(c)));
                }
            }
            for (n, state) in state.into_iter().enumerate() {
                for (c, state) in state.into_iter().enumerate() {
                    state.store(slot(n, c));
                }
            }
        }
    }
}
