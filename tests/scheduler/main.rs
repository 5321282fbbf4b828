//! The engine, from its pure scheduler to whole generations, over a model that checks what it is given.

mod arrivals;
mod background;
mod checked_model;
mod engine;
mod fairness;
mod harness;
mod pausing;
mod preemption;
mod reuse;
mod sampling;
mod scripts;
