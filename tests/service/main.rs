//! The service as its clients see it: real connections, the real engine, and a model that is cheap to run.

mod completions;
mod connections;
mod eval;
mod fake;
mod harness;
mod metrics;
mod mixed;
mod pressure;
mod process;
mod refusals;
mod streaming;
