//! Which rotation spreads the outliers of a group before it is quantized.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An orthonormal rotation of each group of K; it is its own inverse. Weights are rotated when they are packed;
/// activations are rotated just before they are quantized: `(xH)(HᵀW) = xW`.
///
/// A tail shorter than a block is rotated by the largest power of two that fits, then the rest likewise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rotation {
    /// No rotation, for checkpoints that are int8 already.
    None,
    /// Hadamard matrices of 256: outliers are spread over the whole group.
    #[default]
    Full,
    /// Hadamard matrices of 64.
    #[serde(rename = "blocks-64")]
    Blocks64,
    /// Hadamard matrices of 16 over values 16 apart: only additions of vectors, no permutation.
    Strided,
}

impl fmt::Display for Rotation {
    /// The name used on the command line and in files.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Full => "full",
            Self::Blocks64 => "blocks-64",
            Self::Strided => "strided",
        })
    }
}
