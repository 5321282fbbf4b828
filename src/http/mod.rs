//! All code that deals with HTTP. The other folders know nothing of it.
//!
//! In the order in which a request passes them:
//!
//! - [`server`] accepts the connection, within limits, and [`observe`] logs and counts the request when it ends, by its
//!   [`receipt`].
//! - [`routes`] is the table of all routes, [`auth`] checks the API key, and `admission` what it allows.
//! - [`body`] reads the body within a [`memory`] budget that all requests share, and [`fields`] takes it apart
//!   field by field, each as one of the [`values`].
//! - [`completions`] and [`chat`] each read a request and write its answer; [`generate`] is what they have in common.
//!   [`responses`] has the same for OpenAI's Responses API and [`messages`] for Anthropic's API, as translations to and
//!   from [`chat`].
//! - [`models`], [`capacity`], [`tokenize`], [`health`], [`status`], [`page`] and [`openapi`] answer the rest.
//!
//! They share the state in [`app`]. Every failure on the way is an [`error_body::ApiError`].

pub mod access;
mod admission;
pub mod app;
mod attended_body;
pub mod auth;
pub mod body;
pub mod capacity;
pub mod chat;
pub mod completions;
pub mod error_body;
pub mod fields;
pub mod generate;
pub mod health;
mod heartbeat;
pub mod limits;
mod line_limit;
pub mod memory;
pub mod messages;
pub mod models;
pub mod observe;
pub mod openapi;
pub mod page;
pub mod receipt;
pub mod responses;
pub mod routes;
mod secret_file;
pub mod server;
pub mod status;
pub mod tokenize;
mod trace;
pub mod values;
mod watchdog;
