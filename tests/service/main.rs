//! The service as its clients see it: real connections, the real engine, and a model that is cheap to run.

mod access;
mod chat;
mod completions;
mod connections;
mod descriptors;
mod eval;
mod fake;
mod fields;
mod harness;
mod logs;
mod metrics;
mod mixed;
mod pressure;
mod process;
mod refusals;
mod scores;
mod streaming;
