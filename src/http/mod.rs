//! Everything that knows HTTP, and nothing else does.
//!
//! In the order a request meets them:
//!
//! - [`server`] takes its connection, within limits, and [`observe`] watches it to its end.
//! - [`routes`] is the one table of what is answered, and [`auth`] asks for the key.
//! - [`body`] reads what was sent, in [`memory`] that all requests share, and [`fields`] takes it apart
//!   field by field, each as one of the [`values`].
//! - [`completions`] and [`chat`] each read a request and write its answer; [`generate`] is what they have in common.
//! - [`models`], [`tokenize`], [`health`] and [`openapi`] answer the rest.
//!
//! What they share is the [`app`]. Whatever goes wrong on the way is an [`error_body::ApiError`].

pub mod access;
mod answer_body;
pub mod app;
pub mod auth;
pub mod body;
pub mod chat;
pub mod completions;
pub mod error_body;
pub mod fields;
pub mod generate;
pub mod health;
pub mod limits;
mod line_limit;
pub mod memory;
pub mod models;
pub mod observe;
pub mod openapi;
pub mod routes;
pub mod server;
pub mod tokenize;
pub mod values;
mod watchdog;
