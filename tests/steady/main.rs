//! In a steady state the service allocates nothing, and without work it does nothing.

mod counting;
mod idle;
mod memory;
mod steps;
