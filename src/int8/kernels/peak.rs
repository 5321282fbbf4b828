//! The machine's peak rates: arithmetic without memory accesses, and memory reads without arithmetic. The benchmark
//! divides by them, so each function uses the same instructions as the kernels and nothing else.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// The peak rates of one instruction set. Each function runs about `iterations` rounds and returns the number of
/// operations or bytes; it may be called only on a CPU that has the set.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Multiplications and additions of int8 values.
    pub int8: unsafe fn(u64) -> u64,
    /// Multiplications and additions of f32 values.
    pub f32: unsafe fn(u64) -> u64,
    /// Reads a buffer once from front to back.
    pub read: unsafe fn(&[u8]) -> u64,
}

/// Independent dependency chains: more than latency × throughput of every dot-product instruction (4–5 cycles × 2).
const CHAINS: usize = 12;

macro_rules! limits {
    ($name:ident, $features:literal, $lanes:literal, $ops:literal, $int8_body:expr, $f32_body:expr, $read:expr) => {
        #[cfg(target_arch = "x86_64")]
        pub(super) const $name: Limits = {
            #[target_feature(enable = $features)]
            fn int8(iterations: u64) -> u64 {
                $int8_body(iterations);
                iterations * CHAINS as u64 * $ops
            }
            #[target_feature(enable = $features)]
            fn f32(iterations: u64) -> u64 {
                $f32_body(iterations);
                iterations * CHAINS as u64 * $lanes * 2
            }
            #[target_feature(enable = $features)]
            fn read(data: &[u8]) -> u64 {
                $read(data);
                data.len() as u64
            }
            Limits { int8, f32, read }
        };
    };
}

/// Prefetch distance: one group, as in the tiles.
#[cfg(target_arch = "x86_64")]
const PREFETCH_BYTES: usize = super::super::BLOCK_BYTES;

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch(data: *const u8) {
    // SAFETY: a prefetch needs no valid address.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(data.wrapping_add(PREFETCH_BYTES).cast()) }
}

limits!(
    AVX512,
    "avx512f,avx512bw,avx512vl,avx512vnni,fma",
    16,
    128,
    |iterations| {
        let mut sums = [_mm512_set1_epi32(1); CHAINS];
        let (a, b) = std::hint::black_box((_mm512_set1_epi8(3), _mm512_set1_epi8(5)));
        for _ in 0..iterations {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        std::hint::black_box(sums);
    },
    |iterations| {
        let mut sums = [_mm512_set1_ps(1.0); CHAINS];
        let (a, b) = std::hint::black_box((_mm512_set1_ps(0.5), _mm512_set1_ps(0.25)));
        for _ in 0..iterations {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        std::hint::black_box(sums);
    },
    |data: &[u8]| {
        let mut sums = [_mm512_setzero_si512(); 4];
        for line in data.chunks_exact(256) {
            for (sum, line) in sums.iter_mut().zip(line.chunks_exact(64)) {
                prefetch(line.as_ptr());
                // SAFETY: the chunk is 64 bytes long.
                *sum = _mm512_xor_si512(*sum, unsafe { _mm512_loadu_si512(line.as_ptr().cast()) });
            }
        }
        std::hint::black_box(sums);
    }
);

limits!(
    AVX2,
    "avx2,fma",
    8,
    64,
    |iterations| {
        let mut sums = [_mm256_set1_epi32(1); CHAINS];
        let ones = _mm256_set1_epi16(1);
        let (a, b) = std::hint::black_box((_mm256_set1_epi8(3), _mm256_set1_epi8(5)));
        for _ in 0..iterations {
            for sum in &mut sums {
                // The product depends on the sum, so that the compiler cannot hoist it out of the loop.
                let pairs = _mm256_maddubs_epi16(a, _mm256_sign_epi8(b, *sum));
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        std::hint::black_box(sums);
    },
    |iterations| {
        let mut sums = [_mm256_set1_ps(1.0); CHAINS];
        let (a, b) = std::hint::black_box((_mm256_set1_ps(0.5), _mm256_set1_ps(0.25)));
        for _ in 0..iterations {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        std::hint::black_box(sums);
    },
    |data: &[u8]| {
        let mut sums = [_mm256_setzero_si256(); 8];
        for line in data.chunks_exact(256) {
            for (sum, half) in sums.iter_mut().zip(line.chunks_exact(32)) {
                prefetch(half.as_ptr());
                // SAFETY: the chunk is 32 bytes long.
                *sum = _mm256_xor_si256(*sum, unsafe { _mm256_loadu_si256(half.as_ptr().cast()) });
            }
        }
        std::hint::black_box(sums);
    }
);

/// AVX-VNNI differs from AVX2 only in its int8 arithmetic.
#[cfg(target_arch = "x86_64")]
pub(super) const AVX_VNNI: Limits = {
    #[target_feature(enable = "avx2,avxvnni")]
    fn int8(iterations: u64) -> u64 {
        let mut sums = [_mm256_set1_epi32(1); CHAINS];
        let (a, b) = std::hint::black_box((_mm256_set1_epi8(3), _mm256_set1_epi8(5)));
        for _ in 0..iterations {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, a, b);
            }
        }
        std::hint::black_box(sums);
        iterations * CHAINS as u64 * 64
    }
    Limits { int8, ..AVX2 }
};

/// The peak rates of plain code as the compiler translates it.
pub(super) const SCALAR: Limits = {
    fn int8(iterations: u64) -> u64 {
        let mut sums = [1i32; CHAINS];
        let (a, b) = std::hint::black_box((3u8, 5i8));
        for _ in 0..iterations {
            for sum in &mut sums {
                *sum = std::hint::black_box(*sum).wrapping_add(i32::from(a) * i32::from(b));
            }
        }
        std::hint::black_box(sums);
        iterations * CHAINS as u64 * 2
    }
    fn f32(iterations: u64) -> u64 {
        let mut sums = [1.0f32; CHAINS];
        let (a, b) = std::hint::black_box((0.5f32, 0.25f32));
        for _ in 0..iterations {
            for sum in &mut sums {
                *sum = *sum * a + b;
            }
        }
        std::hint::black_box(sums);
        iterations * CHAINS as u64 * 2
    }
    fn read(data: &[u8]) -> u64 {
        let words = data
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
        std::hint::black_box(words.fold(0, |sum, word| sum ^ word));
        data.len() as u64
    }
    Limits { int8, f32, read }
};
