//! A packed model: what its two files hold, written by `quantize` and mapped by everything else.
//!
//! [`WEIGHTS`] is a safetensors file. A matrix `X` is up to four tensors in it, a norm is one:
//!
//! | tensor | type and shape | what it is |
//! |---|---|---|
//! | `X.codes` | U8 `[panels, k/4, 64, 4]` | codes in the kernels' own order |
//! | `X.scales` | F32 `[panels·64]` | one per column; 0 for padding |
//! | `X.group_scales` | F32 `[panels, groups, 64]` | where groups have scales of their own |
//! | `X.zero_points` | U8 `[panels, groups, 64]` | where they are not all 128 |
//! | `….weight` | F32, padded with zeros to whole panels | the weights of a norm |
//!
//! Every tensor begins at a multiple of 64 bytes. The constants of the model are not folded in: `config.json` has them.
//! [`QUANTIZATION`] holds a [`Quantization`].

mod evaluation;
mod format;
mod read;
mod record;
mod verify;

pub use evaluation::{Evaluation, EvaluationRecord};
pub use format::{CalibrationRecord, MatrixRecord, Quantization, SourceRecord};
pub(crate) use format::{FORMAT, LAYOUT, StoredTensor, tensor_of_norm, tensors_of_matrix};
pub use read::{Placement, load};
pub use record::record;
pub use verify::{verify, verify_in_pieces};

#[cfg(doc)]
use crate::sources::packed::{QUANTIZATION, WEIGHTS};
