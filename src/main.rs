//! The `microgranite` binary.
fn main() {}
