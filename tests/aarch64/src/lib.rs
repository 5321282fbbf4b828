//! `src/int8` of the program and the two files it uses, with their tests.

#![allow(dead_code, unused_imports, reason = "the rest of the program uses what is public here")]

#[path = "../../../src/config.rs"]
pub mod config;
#[path = "../../../src/error.rs"]
pub mod error;
#[path = "../../../src/int8/mod.rs"]
pub mod int8;
