//! Code that only `quantize`, `eval` and `verify-savings` run: the f32 reference, calibration, packing, and measuring rounding errors.
//!
//! | file | what it holds |
//! |---|---|
//! | [`pack`] | quantizing a checkpoint into a packed folder |
//! | [`smooth`] | moving outliers of activations into weights |
//! | [`calibrate`] | the inputs of the linear layers on a sample text |
//! | [`weight_error`] | the rounding errors of the weights |
//! | [`evaluate`] | how much accuracy another arithmetic loses |
//! | `reference`, `mamba`, `experts`, `linear`, `functions` | the forward pass in f32, written to be obviously correct |
//!
//! Each file uses only those below it. `serve` uses nothing here.

pub mod calibrate;
pub mod evaluate;
mod experts;
pub mod functions;
pub(crate) mod linear;
mod mamba;
pub mod pack;
pub mod reference;
pub mod smooth;
pub mod weight_error;
