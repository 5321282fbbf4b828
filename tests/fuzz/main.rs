//! Thousands of hostile requests: nothing that a client sends may end, freeze or bloat the server.
//!
//! Each test starts the real binary on a tiny model and sends it random requests for `MICROGRANITE_FUZZ_SECONDS`
//! seconds (default 3; `.ci/run` gives each 60), while an honest client keeps requesting one token and a probe checks
//! the server's health. After each request the test checks that the process is alive and has not grown. A failure is
//! printed with the request that caused it and with the seed: `MICROGRANITE_FUZZ_SEED` repeats a run.

mod grammars;
mod inputs;
mod requests;
mod server;
mod targets;
mod templates;
