//! AMX (Xeon from Sapphire Rapids on): `tdpbsud` multiplies a tile of 16 rows by 64 signed activations with one of 64 by
//! 16 unsigned weights. Sixteen columns of a panel, 16 K-steps deep, are such a tile as they lie in the packed file.
//!
//! The algorithm is written over [`Tiles`], the instructions it uses. Tests run it over a model of them that follows
//! Intel's published definition, so that it is checked on processors without AMX too.

#[cfg(test)]
pub(super) mod model;

use std::arch::asm;
use std::arch::x86_64::*;
use std::hint::black_box;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::super::{BLOCK_BYTES, GROUP, PANEL, ZERO_POINT};
use super::zmm::finish;
use super::{Candidate, Kernel, Tile, avx512_vnni, peak};

/// This kernel and the features it needs. All but the tile is that of AVX-512 with VNNI.
pub(super) const CANDIDATE: Candidate = Candidate {
    kernel: Kernel {
        name: "amx-int8",
        tile,
        limits: peak::Limits {
            int8: int8_arithmetic,
            ..peak::AVX512
        },
        ..avx512_vnni::CANDIDATE.kernel
    },
    features,
};

/// The CPU features this kernel needs, and whether this CPU has them and the operating system lets this process use them.
fn features() -> Vec<(&'static str, bool)> {
    let mut features = (avx512_vnni::CANDIDATE.features)();
    // Bits of EDX in leaf 7: the standard library names them in unstable builds only.
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    let has = match __get_cpuid_max(0).0 {
        7.. => __cpuid_count(7, 0).edx,
        _ => 0,
    };
    features.push(("amx-tile", has & TILE != 0 && is_permitted()));
    features.push(("amx-int8", has & INT8 != 0));
    features
}

/// Asks the kernel for the tile registers, once. They are 8 KiB more to save when threads take turns, which Linux only does
/// for processes that have asked. Threads that start later have them too, so the first use must be before the pool's.
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    *PERMITTED.get_or_init(|| {
        // SAFETY: this call takes two numbers and touches no memory.
        let refused = unsafe {
            libc::syscall(
                libc::SYS_arch_prctl,
                ARCH_REQ_XCOMP_PERM,
                XFEATURE_XTILEDATA,
            )
        };
        refused == 0
    })
}

/// Rows and columns of sums in a tile, and K-steps in a tile of weights. A panel is four tiles wide.
const SIDE: usize = 16;
/// Bytes of a tile's row.
const ROW_BYTES: usize = 64;
/// Bytes of weights between a K-step and the next.
const STEP_BYTES: usize = PANEL * 4;

/// The shapes of the tile registers, as `ldtilecfg` reads them.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of each row.
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// Registers 0 to 3 are sums of `rows` rows, 4 is activations of as many, and 5 to 7 are weights.
    const fn new(rows: u8) -> Self {
        let mut shapes = Self {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        let mut register = 0;
        while register < 8 {
            shapes.row_bytes[register] = ROW_BYTES as u16;
            shapes.rows[register] = if register < 5 { rows } else { SIDE as u8 };
            register += 1;
        }
        shapes
    }
}

/// By the number of rows.
const SHAPES: [Shapes; SIDE + 1] = {
    let mut shapes = [Shapes::new(0); SIDE + 1];
    let mut rows = 1;
    while rows <= SIDE {
        shapes[rows] = Shapes::new(rows as u8);
        rows += 1;
    }
    shapes
};

/// The instructions on tile registers, which are named by number.
///
/// # Safety
/// Of all but `configure`, that registers have been configured. Of `load` and `store`, that each row of the register, at
/// `stride` bytes from the one before, is valid memory.
trait Tiles {
    /// `ldtilecfg`: sets the shapes of all registers and clears them.
    unsafe fn configure(&mut self, shapes: &Shapes);
    /// `tileloadd`.
    unsafe fn load<const REGISTER: u8>(&mut self, from: *const u8, stride: usize);
    /// `tdpbsud`: adds the products of signed bytes of `A` and unsigned ones of `B` to the sums in `SUMS`.
    unsafe fn add_products<const SUMS: u8, const A: u8, const B: u8>(&mut self);
    /// `tilestored`.
    unsafe fn store<const REGISTER: u8>(&mut self, to: *mut i32, stride: usize);
    /// `tilerelease`: the registers need not be saved any more.
    unsafe fn release(&mut self);
}

/// The processor's own.
struct Processor;

// The assembler knows these instructions whatever features a function has. None of them changes flags or uses the stack. Tile
// registers keep their values from one block to the next because the compiler never uses them: only functions with the
// features of AMX could, and those are not stable.
impl Tiles for Processor {
    #[inline(always)]
    unsafe fn configure(&mut self, shapes: &Shapes) {
        // SAFETY: 64 bytes that are a valid configuration. The registers belong to nobody else: the compiler never uses them.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) shapes, options(nostack, preserves_flags, readonly))
        }
    }

    #[inline(always)]
    unsafe fn load<const REGISTER: u8>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            asm!("tileloadd tmm{register}, [{from} + {stride}]", register = const REGISTER,
                from = in(reg) from, stride = in(reg) stride, options(nostack, preserves_flags, readonly))
        }
    }

    #[inline(always)]
    unsafe fn add_products<const SUMS: u8, const A: u8, const B: u8>(&mut self) {
        // SAFETY: it only touches registers.
        unsafe {
            asm!("tdpbsud tmm{sums}, tmm{a}, tmm{b}", sums = const SUMS, a = const A, b = const B,
                options(nostack, preserves_flags, nomem))
        }
    }

    #[inline(always)]
    unsafe fn store<const REGISTER: u8>(&mut self, to: *mut i32, stride: usize) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            asm!("tilestored [{to} + {stride}], tmm{register}", register = const REGISTER,
                to = in(reg) to, stride = in(reg) stride, options(nostack, preserves_flags))
        }
    }

    #[inline(always)]
    unsafe fn release(&mut self) {
        // SAFETY: it only touches registers.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) }
    }
}

/// # Safety
/// `tile` was checked by [`Kernel::tile`], and the CPU has [`features`].
unsafe fn tile(t: &Tile) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        match t.rows >= fewest_rows() {
            true => tile_of_processor(t),
            false => (avx512_vnni::CANDIDATE.kernel.tile)(t),
        }
    }
}

/// # Safety
/// As [`tile`].
unsafe fn tile_of_processor(t: &Tile) {
    // SAFETY: guaranteed by the caller.
    unsafe { tile_with(&mut Processor, t) }
}

/// From how many rows on this tile is faster than that of AVX-512 with VNNI. It is measured once, in a tenth of a
/// millisecond, because it differs between processors and virtual machines. Both give the same bits.
fn fewest_rows() -> usize {
    static FEWEST: OnceLock<usize> = OnceLock::new();
    *FEWEST.get_or_init(|| {
        let others = avx512_vnni::CANDIDATE.kernel.tile;
        let is_faster = |&rows: &usize| seconds(tile_of_processor, rows) < seconds(others, rows);
        [2, 4, 8, SIDE]
            .into_iter()
            .find(is_faster)
            .unwrap_or(usize::MAX)
    })
}

/// The time that `tile` takes for a block of weights in the cache and this many rows.
fn seconds(tile: unsafe fn(&Tile), rows: usize) -> Duration {
    let (weights, codes) = (vec![3; BLOCK_BYTES], vec![5; rows * GROUP]);
    let (scales, sums) = (vec![1.0; rows], vec![0; rows]);
    let mut out = vec![0.0; rows * PANEL];
    let t = Tile {
        weights: weights.as_ptr(),
        steps: GROUP / 4,
        zero_points: std::ptr::null(),
        column_scales: std::ptr::null(),
        codes: codes.as_ptr(),
        stride: GROUP,
        scales: scales.as_ptr(),
        sums: sums.as_ptr(),
        rows,
        out: out.as_mut_ptr(),
        accumulate: false,
        ahead: weights.as_ptr(),
        ahead_len: 0,
    };
    let once = || {
        let began = Instant::now();
        for _ in 0..8 {
            // SAFETY: the vectors have the lengths that `Tile` asks for, and only processors that have both kernels come
            // here.
            unsafe { tile(black_box(&t)) }
        }
        began.elapsed()
    };
    // The first one warms up caches and clocks; the least is the one that nothing interrupted.
    (0..5).map(|_| once()).min().unwrap_or_default()
}

/// Zeros around the last K-steps of a group that is not a multiple of [`SIDE`] deep.
#[repr(C, align(64))]
struct Padded {
    weights: [u8; SIDE * STEP_BYTES],
    codes: [i8; SIDE * ROW_BYTES],
}

impl Padded {
    /// What is left of the tile from K-step `step` on, for `rows` rows whose codes begin at `codes`.
    ///
    /// # Safety
    /// Fewer than [`SIDE`] K-steps are left, and these rows, at most as many, exist in the checked tile.
    unsafe fn new(t: &Tile, codes: *const i8, rows: usize, step: usize) -> Self {
        let mut padded = Self {
            weights: [0; SIDE * STEP_BYTES],
            codes: [0; SIDE * ROW_BYTES],
        };
        let rest = t.steps - step;
        // SAFETY: guaranteed by the caller.
        unsafe {
            let weights =
                std::slice::from_raw_parts(t.weights.add(step * STEP_BYTES), rest * STEP_BYTES);
            padded.weights[..weights.len()].copy_from_slice(weights);
            for (row, padded) in padded
                .codes
                .chunks_exact_mut(ROW_BYTES)
                .take(rows)
                .enumerate()
            {
                let codes = codes.add(row * t.stride + 4 * step);
                padded[..4 * rest].copy_from_slice(std::slice::from_raw_parts(codes, 4 * rest));
            }
        }
        padded
    }
}

/// Sums of a pass: 16 rows of a panel.
#[repr(C, align(64))]
struct Sums([i32; SIDE * PANEL]);

/// Multiplies passes of up to 16 rows, with the four tiles of the panel side by side: one load of activations serves four
/// products. A product keeps the multiplier busy for 16 cycles and a load takes 8, so loads hide behind products.
///
/// # Safety
/// `tile` was checked by [`Kernel::tile`], and the CPU has AVX-512 with VNNI and what `tiles` needs.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
unsafe fn tile_with<T: Tiles>(tiles: &mut T, t: &Tile) {
    let passes = t.rows.div_ceil(SIDE);
    let (size, larger) = (t.rows / passes, t.rows % passes);
    let (whole, rest) = (t.steps / SIDE, t.steps % SIDE);
    // As in the other tiles, prefetches are spread over the arithmetic.
    let lines = (t.ahead_len / ROW_BYTES).div_ceil(passes * whole.max(1));
    let (mut first, mut ahead) = (0, t.ahead);
    let mut sums = Sums([0; SIDE * PANEL]);
    for pass in 0..passes {
        let rows = size + usize::from(pass < larger);
        // SAFETY: rows `first .. first + rows` and all K-steps are in the checked tile; `Padded` and `Sums` have the sizes
        // of what is loaded and stored.
        unsafe {
            // This clears the sums of the pass before.
            tiles.configure(&SHAPES[rows]);
            let codes = t.codes.add(first * t.stride);
            for step in (0..whole).map(|tile| tile * SIDE) {
                for line in 0..lines {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(ROW_BYTES * line).cast());
                }
                ahead = ahead.wrapping_add(ROW_BYTES * lines);
                let weights = t.weights.add(step * STEP_BYTES);
                add_steps(tiles, weights, codes.add(4 * step), t.stride);
            }
            if rest > 0 {
                let Padded { weights, codes } = &Padded::new(t, codes, rows, whole * SIDE);
                add_steps(tiles, weights.as_ptr(), codes.as_ptr(), ROW_BYTES);
            }
            let to = sums.0.as_mut_ptr();
            tiles.store::<0>(to, 4 * PANEL);
            tiles.store::<1>(to.add(SIDE), 4 * PANEL);
            tiles.store::<2>(to.add(2 * SIDE), 4 * PANEL);
            tiles.store::<3>(to.add(3 * SIDE), 4 * PANEL);
            for (row, sums) in sums.0.chunks_exact(PANEL).take(rows).enumerate() {
                // As for `vpdpbusd`: the weights are unsigned, `q = w + 128`.
                let start = _mm512_set1_epi32(-ZERO_POINT * *t.sums.add(first + row));
                let sum = |j| _mm512_load_si512(sums.as_ptr().add(SIDE * j).cast());
                let sums = std::array::from_fn(|j| _mm512_add_epi32(start, sum(j)));
                finish(t, first + row, sums);
            }
        }
        first += rows;
    }
    // SAFETY: the registers have been configured.
    unsafe { tiles.release() }
}

/// Adds the products of [`SIDE`] K-steps.
///
/// # Safety
/// That many K-steps are behind `weights`, and in each of the configured rows behind `codes`.
#[inline(always)]
unsafe fn add_steps<T: Tiles>(tiles: &mut T, weights: *const u8, codes: *const i8, stride: usize) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        tiles.load::<4>(codes.cast(), stride);
        tiles.load::<5>(weights, STEP_BYTES);
        tiles.add_products::<0, 4, 5>();
        tiles.load::<6>(weights.add(ROW_BYTES), STEP_BYTES);
        tiles.add_products::<1, 4, 6>();
        tiles.load::<7>(weights.add(2 * ROW_BYTES), STEP_BYTES);
        tiles.add_products::<2, 4, 7>();
        tiles.load::<5>(weights.add(3 * ROW_BYTES), STEP_BYTES);
        tiles.add_products::<3, 4, 5>();
    }
}

/// The peak of the multiplier: products in registers, four sums apart from each other.
///
/// # Safety
/// The CPU has [`features`].
unsafe fn int8_arithmetic(iterations: u64) -> u64 {
    let tiles = &mut Processor;
    // SAFETY: the registers are configured first.
    unsafe {
        tiles.configure(&SHAPES[SIDE]);
        for _ in 0..iterations {
            tiles.add_products::<0, 4, 5>();
            tiles.add_products::<1, 4, 6>();
            tiles.add_products::<2, 4, 7>();
            tiles.add_products::<3, 4, 5>();
        }
        tiles.release();
    }
    iterations * 4 * 2 * (SIDE * SIDE * ROW_BYTES) as u64
}
