//! The command line: one short file per command.

pub mod bench;
