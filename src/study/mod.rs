//! What only `quantize` and `eval` run: the f32 reference, calibration, packing, and what rounding cost.
//!
//! | file | what it holds |
//! |---|---|
//! | [`pack`] | quantizing a checkpoint into a packed folder |
//! | [`smooth`] | outliers of activations moved into weights |
//! | [`calibrate`] | what the linear layers multiply on a sample text |
//! | [`weight_error`] | what rounding did to the weights |
//! | [`evaluate`] | what another arithmetic costs in accuracy |
//! | [`reference`], [`linear`] | the forward pass in f32, written to be obviously right |
//!
//! Each file uses only those below it. Nothing here is reached while serving.

pub mod calibrate;
pub mod evaluate;
pub(crate) mod linear;
pub mod pack;
pub mod reference;
pub mod smooth;
pub mod weight_error;
