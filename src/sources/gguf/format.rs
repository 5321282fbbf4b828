//! How GGUF stores values: plain floats, or blocks of small integers with a scale, which candle turns back into floats.

use std::borrow::Cow;

use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;

use crate::sources::floats::FloatType;

/// A supported ggml type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format(&'static Entry);

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    /// The number in the file.
    ggml: u32,
    name: &'static str,
    candle: GgmlDType,
}

/// Every weight type that candle can dequantize (the 8-bit types missing here are for activations).
#[rustfmt::skip]
static FORMATS: [Entry; 13] = [
    Entry { ggml: 0, name: "f32", candle: GgmlDType::F32 },
    Entry { ggml: 1, name: "f16", candle: GgmlDType::F16 },
    Entry { ggml: 30, name: "bf16", candle: GgmlDType::BF16 },
    Entry { ggml: 2, name: "q4_0", candle: GgmlDType::Q4_0 },
    Entry { ggml: 3, name: "q4_1", candle: GgmlDType::Q4_1 },
    Entry { ggml: 6, name: "q5_0", candle: GgmlDType::Q5_0 },
    Entry { ggml: 7, name: "q5_1", candle: GgmlDType::Q5_1 },
    Entry { ggml: 8, name: "q8_0", candle: GgmlDType::Q8_0 },
    Entry { ggml: 10, name: "q2_k", candle: GgmlDType::Q2K },
    Entry { ggml: 11, name: "q3_k", candle: GgmlDType::Q3K },
    Entry { ggml: 12, name: "q4_k", candle: GgmlDType::Q4K },
    Entry { ggml: 13, name: "q5_k", candle: GgmlDType::Q5K },
    Entry { ggml: 14, name: "q6_k", candle: GgmlDType::Q6K },
];

/// Unsupported types, by their names in llama.cpp: codes from a codebook (IQ…), ternary, four-bit floats, and blocks
/// laid out for one CPU. Types for activations and integers are missing because they hold no weights.
#[rustfmt::skip]
static UNREAD: [(u32, &str); 28] = [
    (4, "Q4_2"), (5, "Q4_3"), (9, "Q8_1"), (15, "Q8_K"),
    (16, "IQ2_XXS"), (17, "IQ2_XS"), (18, "IQ3_XXS"), (19, "IQ1_S"), (20, "IQ4_NL"), (21, "IQ3_S"), (22, "IQ2_S"), (23, "IQ4_XS"),
    (24, "I8"), (25, "I16"), (26, "I32"), (27, "I64"), (28, "F64"), (29, "IQ1_M"),
    (31, "Q4_0_4_4"), (32, "Q4_0_4_8"), (33, "Q4_0_8_8"), (34, "TQ1_0"), (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"), (37, "IQ4_NL_4_8"), (38, "IQ4_NL_8_8"), (39, "MXFP4"), (40, "NVFP4"),
];

impl Format {
    /// The format with this number in the file.
    pub fn from_ggml(ggml: u32) -> Option<Self> {
        FORMATS.iter().find(|entry| entry.ggml == ggml).map(Self)
    }

    /// Why a tensor of this type cannot be read, and what to do.
    pub fn refusal(ggml: u32) -> String {
        let name = UNREAD.iter().find(|(number, _)| *number == ggml);
        let advice = "get the Q8_0 file of the same repository";
        match name {
            Some((_, name)) => format!("is of type {name}, which cannot be read; {advice}"),
            None => format!("is of a type that is not known here (number {ggml}); {advice}"),
        }
    }

    /// The name for people, as in `q8_0`.
    pub const fn name(self) -> &'static str {
        self.0.name
    }

    /// Values per block; 1 for plain floats.
    pub fn block_values(self) -> usize {
        self.0.candle.block_size()
    }

    /// Bytes of one row of `k` values, a multiple of the block.
    pub fn row_bytes(self, k: usize) -> usize {
        k / self.block_values() * self.0.candle.type_size()
    }

    /// Bytes of a whole tensor; `None` if its rows are not whole blocks or the size overflows.
    pub fn bytes_for(self, shape: &[usize]) -> Option<u64> {
        let (k, rows) = shape.split_last()?;
        if k % self.block_values() != 0 {
            return None;
        }
        let blocks = (k / self.block_values()) as u64;
        let row_bytes = blocks.checked_mul(self.0.candle.type_size() as u64)?;
        rows.iter()
            .try_fold(row_bytes, |bytes, n| bytes.checked_mul(*n as u64))
    }

    /// Writes the values of one row into `out`. `stored` holds exactly that row, at an even address.
    pub fn dequantize(self, stored: &[u8], out: &mut [f32]) {
        let float = match self.0.candle {
            GgmlDType::F32 => FloatType::F32,
            GgmlDType::F16 => FloatType::F16,
            GgmlDType::BF16 => FloatType::BF16,
            blocks => {
                let blocks = blocks.from_data(Cow::Borrowed(stored));
                match blocks.dequantize(out.len()) {
                    Ok(CpuStorage::F32(values)) => out.copy_from_slice(&values),
                    // candle's in-memory dequantization neither fails nor yields another type. If that ever changes,
                    // the values must not be used as weights.
                    _ => out.fill(f32::NAN),
                }
                return;
            }
        };
        float.widen(stored, out);
    }
}
