//! The number format: what an int8 matrix is and how it multiplies.
//!
//! Codes `q` and values `x` are always related by one linear map: `x ≈ s · (q − z)`.
//!
//! * **Weights** are stored unsigned, `q` in 0…255. Symmetric: the zero point `z` is 128 and `q − 128` is in −127…127.
//!   Affine: there is a zero point for each column and group, and the whole range of codes is used. In both cases every
//!   instruction set computes the same integers (16-bit pairwise products on AVX2 cannot saturate). There is one scale
//!   per output channel and, if accuracy needs it, one per group of K as well.
//! * **Activations** are quantized at run time, signed, −127…127, one scale per row and per [`GROUP`] of K.
//! * Before an activation group is quantized it is **rotated** by an orthonormal Hadamard transform, and the weights are
//!   rotated alike when they are packed: `(xH)(HᵀW) = xW`. This spreads an outlier channel over its group. Checkpoints
//!   that are int8 already are not rotated.
//! * Products accumulate in int32, exactly. The sums of groups are added in f32 in ascending order, always with a fused
//!   multiply-add, and the column's scale is applied last:
//!
//! ```text
//! y[m][n] = scale[n] · fold over g ascending of fma( float( Σ_k q[n][k]·a[m][k] − z[n][g]·Σ_k a[m][k] ), scale[m][g]·scale[n][g], · )
//! ```
//!
//! So a row's result does not depend on the other rows, on the number of threads or on the instruction set.
//!
//! | file | what it holds |
//! |---|---|
//! | [`matrix`] | [`matrix::Matrix`]: packed weights; owns every layout invariant |
//! | [`activations`] | [`activations::Activations`]: quantized rows |
//! | `floats` | buffers aligned to cache lines |
//! | [`compute`] | the instruction set, the threads and their buffers: what every phase needs |
//! | `matmul` | multiplication of activations by a matrix, panel by panel |
//! | `routed` | multiplication of rows by the experts that they have taken |
//! | `memory` | the memory that holds weights |
//! | [`scheme`], `quantize` | the choices in the mapping, and the conversion of floats to codes |
//! | `compensate` | rounding with compensation of its own errors |
//! | [`rotation`] | which rotation spreads outliers over a group |
//! | [`kernels`] | the instruction sets, the vector functions and the compute threads |

pub mod activations;
pub(crate) mod compensate;
pub mod compute;
pub(crate) mod floats;
pub mod kernels;
pub(crate) mod matmul;
pub mod matrix;
pub(crate) mod memory;
pub(crate) mod quantize;
pub mod rotation;
pub(crate) mod routed;
pub mod scheme;

/// Width of a group of K: an activation scale covers this many values. The int32 sum of a group stays below 2²⁴, so its
/// conversion to f32 is exact, and rescaling once per 256 costs about 3 % of the arithmetic.
pub const GROUP: usize = 256;

/// Output columns in a panel: four 16-lane vectors, which with six rows fill 24 of 32 vector registers.
pub const PANEL: usize = 64;

/// Bytes of one group of one panel: 64 K-steps of `[64 columns][4 of K]`, small enough to stay in the first-level
/// cache.
pub(crate) const BLOCK_BYTES: usize = GROUP * PANEL;

/// The zero point of symmetric weights.
pub(crate) const ZERO_POINT: i32 = 128;

/// The largest code of a symmetric quantizer.
pub(crate) const CODE_MAX: f32 = 127.0;
