//! Hostile input by the thousand: nothing that a client sends may end, freeze or bloat the server.
//!
//! Each test starts the real binary on a tiny model and sends it made-up requests for `MICROGRANITE_FUZZ_SECONDS` seconds
//! (3 if that is not set; `.ci/run` gives each 20), while an honest client keeps asking for one token and a probe
//! asks whether the server is alive. After each request it is checked that the process lives and has not grown. What
//! went wrong is printed with the request that did it, and with the seed: `MICROGRANITE_FUZZ_SEED` repeats a run.

mod grammars;
mod inputs;
mod server;
mod targets;
mod templates;
