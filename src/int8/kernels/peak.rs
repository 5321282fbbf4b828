//! The machine's peak rates: arithmetic without memory accesses, and memory reads without arithmetic. The benchmark
//! divides by them, so each function uses the same instructions as the kernels and nothing else.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
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

/// AVX-512 without VNNI differs only in its int8 arithmetic.
#[cfg(target_arch = "x86_64")]
pub(super) const AVX512_BW: Limits = {
    #[target_feature(enable = "avx512f,avx512bw")]
    fn int8(iterations: u64) -> u64 {
        let mut sums = [_mm512_set1_epi32(1); CHAINS];
        let (zero, ones) = (_mm512_setzero_si512(), _mm512_set1_epi16(1));
        let (a, b) = std::hint::black_box((_mm512_set1_epi8(3), _mm512_set1_epi8(5)));
        let negative = std::hint::black_box(0x5555_5555_5555_5555);
        for _ in 0..iterations {
            for sum in &mut sums {
                // The product depends on the sum, so that the compiler cannot hoist it out of the loop.
                let row = _mm512_mask_sub_epi8(*sum, negative, zero, b);
                let pairs = _mm512_maddubs_epi16(a, row);
                *sum = _mm512_add_epi32(*sum, _mm512_madd_epi16(pairs, ones));
            }
        }
        std::hint::black_box(sums);
        iterations * CHAINS as u64 * 128
    }
    Limits { int8, ..AVX512 }
};

/// The peak rates of NEON without a dot product.
#[cfg(target_arch = "aarch64")]
pub(super) const NEON: Limits = {
    fn int8(iterations: u64) -> u64 {
        // SAFETY: every CPU of this architecture has the registers.
        unsafe {
            let mut sums = [vdupq_n_s32(1); CHAINS];
            let (a, b) = std::hint::black_box((vdup_n_s8(3), vdup_n_s8(5)));
            for _ in 0..iterations {
                for sum in &mut sums {
                    // The product depends on the sum, so that the compiler cannot hoist it out of the loop.
                    let a = veor_s8(a, vreinterpret_s8_s32(vget_low_s32(*sum)));
                    *sum = vpadalq_s16(*sum, vmlal_s8(vmull_s8(a, b), a, b));
                }
            }
            std::hint::black_box(sums);
        }
        // Two products of eight codes each.
        iterations * CHAINS as u64 * 32
    }
    fn f32(iterations: u64) -> u64 {
        // SAFETY: as above.
        unsafe {
            let mut sums = [vdupq_n_f32(1.0); CHAINS];
            let (a, b) = std::hint::black_box((vdupq_n_f32(0.5), vdupq_n_f32(0.25)));
            for _ in 0..iterations {
                for sum in &mut sums {
                    *sum = vfmaq_f32(b, *sum, a);
                }
            }
            std::hint::black_box(sums);
        }
        iterations * CHAINS as u64 * 8
    }
    fn read(data: &[u8]) -> u64 {
        // SAFETY: as above; the chunks are as long as what is loaded.
        unsafe {
            let mut sums = [vdupq_n_u8(0); 8];
            for line in data.chunks_exact(256) {
                super::neon_tile::prefetch(line.as_ptr().wrapping_add(super::super::BLOCK_BYTES));
                for (sum, part) in sums.iter_mut().zip(line.chunks_exact(32)) {
                    let (a, b) = (vld1q_u8(part.as_ptr()), vld1q_u8(part.as_ptr().add(16)));
                    *sum = veor3(*sum, a, b);
                }
            }
            std::hint::black_box(sums);
        }
        data.len() as u64
    }
    /// The exclusive or of three registers.
    #[inline(always)]
    fn veor3(a: uint8x16_t, b: uint8x16_t, c: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { veorq_u8(a, veorq_u8(b, c)) }
    }
    Limits { int8, f32, read }
};

/// The dot product differs only in its int8 arithmetic.
#[cfg(target_arch = "aarch64")]
pub(super) const NEON_DOTPROD: Limits = {
    #[target_feature(enable = "neon,dotprod")]
    fn int8(iterations: u64) -> u64 {
        let mut sums = [vdupq_n_s32(1); CHAINS];
        let (a, b) = std::hint::black_box((vdupq_n_s8(3), vdupq_n_s8(5)));
        for _ in 0..iterations {
            for sum in &mut sums {
                *sum = super::neon_tile::sdot::<0>(*sum, a, b);
            }
        }
        std::hint::black_box(sums);
        iterations * CHAINS as u64 * 32
    }
    Limits { int8, ..NEON }
};

/// So does the matrix product.
#[cfg(target_arch = "aarch64")]
pub(super) const NEON_I8MM: Limits = {
    #[target_feature(enable = "neon,dotprod,i8mm")]
    fn int8(iterations: u64) -> u64 {
        let mut sums = [vdupq_n_s32(1); CHAINS];
        let (a, b) = std::hint::black_box((vdupq_n_u8(3), vdupq_n_s8(5)));
        for _ in 0..iterations {
            for sum in &mut sums {
                *sum = super::neon_tile::usmmla(*sum, a, b);
            }
        }
        std::hint::black_box(sums);
        iterations * CHAINS as u64 * 64
    }
    Limits { int8, ..NEON }
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
