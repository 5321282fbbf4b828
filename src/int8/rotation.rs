//! Which rotation spreads the outliers of a group before it is quantized.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An orthonormal rotation of each group of K, its own inverse. Weights carry it from packing time; activations are
/// rotated just before they are quantized: `(xH)(HᵀW) = xW`.
///
/// A tail shorter than a block uses the largest power of two that fits, and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rotation {
    /// None: for codes that were fixed elsewhere.
    None,
    /// Hadamard matrices of 256: outliers spread over the whole group.
    #[default]
    Full,
    /// Hadamard matrices of 64.
    #[serde(rename = "blocks-64")]
    Blocks64,
    /// Hadamard matrices of 16 over values 16 apart: plain additions of vectors, no permutation.
    Strided,
}

impl fmt::Display for Rotation {
    /// As it is written on the command line and in files.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Full => "full",
            Self::Blocks64 => "blocks-64",
            Self::Strided => "strided",
        })
    }
}
