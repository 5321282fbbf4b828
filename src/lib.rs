//! Microgranite serves IBM Granite checkpoints at eight bits on plain CPUs.
//!
//! The folders are listed in the order a request meets them, and each uses only those below it:
//!
//! | folder | what it holds |
//! |---|---|
//! | [`cli`] | one short file per command: what was typed → a call into the rest |
//! | [`http`] | everything that knows HTTP: routes, wire shapes, streaming, errors, health |
//! | [`text`] | characters ↔ token ids: tokenizer, incremental decoding, stop strings, chat templates |
//! | [`engine`] | one thread that owns the model: handle, scheduler, prefix cache, speculation, sampler |
//! | [`study`] | what only `quantize`, `eval` and `verify-savings` run: f32 reference, calibration, packing, what rounding cost |
//! | [`model`] | Granite in the words of its `config.json`: weights, forward pass, KV cache |
//! | [`sources`] | where a model comes from: folder, GGUF file, hub, demo |
//! | [`int8`] | the number format: quantize, packed matrices, matrix multiply, kernels |
//!
//! [`build`], [`config`], [`error`], [`memory`] and [`telemetry`] are used everywhere: the id of the build, parsers for
//! what users type, errors, memory limits, and metrics. [`lookup`] is for static builds.
//!
//! `tests/imports.rs` keeps that order.
//!
//! Invariants: the engine never sees text; `http` never sees a tensor; nothing below `cli` reads the environment;
//! `unsafe` lives only in `int8/kernels`, in the one memory map (`sources/mapped.rs`), and in one call of static builds
//! (`lookup.rs`).

pub mod cli;
pub mod engine;
pub mod http;
pub mod int8;
pub mod model;
pub mod sources;
pub mod study;
pub mod text;

pub mod build;
mod cgroup;
pub mod config;
pub mod error;
pub mod logging;
pub mod lookup;
pub mod memory;
pub mod telemetry;
