//! Which build this is. Two builds whose arithmetic may differ have different ids, and so have their answers.

/// The version of the program, as it is released.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit, or what `MICROGRANITE_BUILD` said when it was built; `build.rs` at the root has the rules.
pub const ID: &str = env!("BUILD_ID");
/// Both, for people.
pub const VERSION_AND_ID: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (build ", env!("BUILD_ID"), ")");
