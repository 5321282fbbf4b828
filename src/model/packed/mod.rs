//! A packed model: the format of its two files, which `quantize` writes and all other commands map.
//!
//! [`WEIGHTS`] is a safetensors file. A matrix `X` is stored as up to four tensors, a vector as one:
//!
//! | tensor | type and shape | what it is |
//! |---|---|---|
//! | `X.codes` | U8 `[panels, k/4, 64, 4]` | codes in the order in which kernels read them |
//! | `X.scales` | F32 `[panels·64]` | one per column; 0 for padding |
//! | `X.group_scales` | F32 `[panels, groups, 64]` | if groups have scales of their own |
//! | `X.zero_points` | U8 `[panels, groups, 64]` | if they are not all 128 |
//! | `….weight`, `…mamba.A` and so on | F32, padded with zeros to a multiple of 64 | a norm, a router, or the small parts of a Mamba-2 mixer |
//!
//! Every tensor begins at a multiple of 64 bytes. The constants of the model are not folded in; they are in
//! `config.json`. [`QUANTIZATION`] holds a [`Quantization`].

mod canary;
mod evaluation;
mod format;
mod read;
mod record;
mod savings;
mod verify;

pub use canary::{CANARY, CanaryPrompt, CanaryRecord};
pub use evaluation::{Evaluation, EvaluationRecord};
pub use format::{CalibrationRecord, MatrixRecord, Quantization, SourceRecord};
pub(crate) use format::{FORMAT, LAYOUT, StoredTensor, tensor_of_vector, tensors_of_matrix};
pub use read::{Placement, load};
pub use record::record;
pub use savings::{Measured, SAVINGS, SavingsRecord};
pub use verify::{verify, verify_in_pieces};

#[cfg(doc)]
use crate::sources::packed::{QUANTIZATION, WEIGHTS};
