//! Tests of the service as its clients see it: with real connections, the real engine, and a model that is cheap to
//! run.

mod access;
mod bench;
mod chat;
mod completions;
mod connections;
mod damage;
mod descriptors;
mod eval;
mod fake;
mod fields;
mod flags;
mod grammar_fields;
mod grammars;
mod harness;
mod logs;
mod metrics;
mod mixed;
mod pressure;
mod process;
mod refusals;
mod scores;
mod stalls;
mod stopping;
mod streaming;
mod thinking;
