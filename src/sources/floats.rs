//! Rows of little-endian floating-point numbers, widened to f32.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// A floating-point type that checkpoints store weights in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatType {
    /// The upper half of an f32.
    BF16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl FloatType {
    /// Bytes of one value.
    pub const fn bytes(self) -> usize {
        match self {
            Self::BF16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// The name for people, as in `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BF16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    /// Widens `stored` into `out`. `stored` holds exactly `out.len()` values, at any alignment.
    pub fn widen(self, stored: &[u8], out: &mut [f32]) {
        debug_assert_eq!(stored.len(), out.len() * self.bytes());
        match self {
            Self::BF16 => {
                for (value, bytes) in out.iter_mut().zip(stored.as_chunks::<2>().0) {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
                }
            }
            Self::F16 => {
                // `half` converts slices with the CPU's own instruction, so values are copied to an aligned buffer
                // first; 256 of them (512 bytes) stay in the first-level cache.
                let mut line = [f16::ZERO; 256];
                for (values, bytes) in out
                    .chunks_mut(line.len())
                    .zip(stored.chunks(2 * line.len()))
                {
                    for (half, bytes) in line.iter_mut().zip(bytes.as_chunks::<2>().0) {
                        *half = f16::from_le_bytes(*bytes);
                    }
                    line[..values.len()].convert_to_f32_slice(values);
                }
            }
            Self::F32 => {
                for (value, bytes) in out.iter_mut().zip(stored.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
        }
    }
}

/// Whether every value is finite. Checks all of them without branching, which the compiler vectorises.
pub fn all_finite(values: &[f32]) -> bool {
    // An f32 is infinite or NaN exactly when its eight exponent bits are all set.
    const EXPONENT: u32 = 0x7f80_0000;
    let bad = |value: &f32| u32::from(value.to_bits() & EXPONENT == EXPONENT);
    values.iter().map(bad).fold(0, |found, bad| found | bad) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn every_16_bit_pattern_widens_to_the_value_it_means() {
        let patterns: Vec<u16> = (0..=u16::MAX).collect();
        // One byte in front puts every value at an odd address.
        let mut stored = vec![0u8];
        stored.extend(patterns.iter().flat_map(|p| p.to_le_bytes()));
        let mut out = vec![0.0; patterns.len()];
        for (dtype, meaning) in [
            (
                FloatType::F16,
                (|p| f16::from_bits(p).to_f32()) as fn(u16) -> f32,
            ),
            (FloatType::BF16, |p| bf16::from_bits(p).to_f32()),
        ] {
            dtype.widen(&stored[1..], &mut out);
            for (pattern, value) in patterns.iter().zip(&out) {
                let expected = meaning(*pattern);
                let same =
                    value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan();
                assert!(same, "{dtype:?} {pattern:#06x}: {value} is not {expected}");
            }
        }
    }

    #[test]
    fn f32_bytes_are_taken_as_they_are() {
        let values = [0.0f32, -1.5, f32::MIN_POSITIVE, 3.0e38];
        let stored: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut out = [0.0; 4];
        FloatType::F32.widen(&stored, &mut out);
        assert_eq!(out, values);
    }

    #[test]
    fn one_infinity_or_nan_anywhere_is_noticed() {
        let mut values = vec![f32::MAX; 133];
        assert!(all_finite(&values));
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            for i in [0, 64, 132] {
                values[i] = bad;
                assert!(!all_finite(&values));
                values[i] = f32::MAX;
            }
        }
    }
}
