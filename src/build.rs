//! The version and id of this build. Two builds whose arithmetic may differ have different ids, and their answers carry
//! these ids.

/// The released version of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit, or the value of `MICROGRANITE_BUILD` at build time; `build.rs` at the root has the rules.
pub const ID: &str = env!("BUILD_ID");
/// Both, to be read by people.
pub const VERSION_AND_ID: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (build ", env!("BUILD_ID"), ")");
