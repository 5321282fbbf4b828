//! How much one request may ask for, as flags of `serve`.

use crate::config::{self, ByteSize};
use crate::error::{Error, Result};
use crate::http::limits::Limits;

/// Limits on requests. What is beyond is refused by name, never cut down.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits on one request")]
pub struct LimitArgs {
    /// Longest body.
    #[arg(
        long,
        env = "MICROGRANITE_MAX_BODY",
        value_name = "SIZE",
        default_value = "1MiB"
    )]
    max_body: ByteSize,

    /// Memory for requests, all of them together: their bodies, prompts, and answers that are put together. Less fits a
    /// smaller machine and refuses long requests with 503 when many come at once. A request of 16 KiB needs none of it.
    #[arg(
        long,
        env = "MICROGRANITE_MAX_REQUEST_MEMORY",
        value_name = "SIZE",
        default_value = "64MiB"
    )]
    max_request_memory: ByteSize,

    /// Longest headers, all of them together. Each connection can hold as much memory.
    #[arg(
        long,
        env = "MICROGRANITE_MAX_HEADER",
        value_name = "SIZE",
        default_value = "32KiB"
    )]
    max_header: ByteSize,

    /// Prompts in one request. More lets one client fill the queue at the price of one request.
    #[arg(long, env = "MICROGRANITE_MAX_PROMPTS", value_name = "N", value_parser = config::positive, default_value_t = Limits::default().prompts)]
    max_prompts: usize,

    /// Answers to each prompt (n, best_of). More lets one client fill the queue at the price of one request.
    #[arg(long, env = "MICROGRANITE_MAX_CHOICES", value_name = "N", value_parser = config::positive, default_value_t = Limits::default().choices)]
    max_choices: usize,

    /// Tokens of each answer (max_tokens). Less keeps single answers from holding their place for long.
    /// [default: what the context leaves]
    #[arg(long, env = "MICROGRANITE_MAX_TOKENS", value_name = "N", value_parser = config::positive)]
    max_tokens: Option<usize>,

    /// Stop strings. Each takes a little time for every character.
    #[arg(long, env = "MICROGRANITE_MAX_STOPS", value_name = "N", default_value_t = Limits::default().stops)]
    max_stops: usize,

    /// Refuse fields that nobody knows with 400, instead of naming them in X-Ignored-Params.
    #[arg(long, env = "MICROGRANITE_STRICT")]
    strict: bool,
}

/// Headers beyond this are no headers.
const MOST_HEADER_BYTES: u64 = 1 << 20;

/// A body of plain text takes twice its length, and what has many commas more.
const LEAST_BODIES: u64 = 4;

impl LimitArgs {
    /// Bytes of a request's headers.
    ///
    /// # Errors
    /// [`Error::Usage`] when no request fits, or hardly any memory does.
    pub fn header_bytes(&self) -> Result<usize> {
        match self.max_header.0 {
            bytes @ 1024..=MOST_HEADER_BYTES => Ok(bytes as usize),
            _ => Err(Error::Usage(
                "--max-header must be from 1KiB to 1MiB".into(),
            )),
        }
    }

    /// The limits as the service takes them.
    ///
    /// # Errors
    /// [`Error::Usage`] when the longest body and what is made of it do not fit the memory for requests.
    pub fn limits(&self) -> Result<Limits> {
        let least = self.max_body.0.saturating_mul(LEAST_BODIES);
        if self.max_request_memory.0 < least {
            let problem = format!(
                "--max-request-memory must be at least {LEAST_BODIES} times --max-body: {}",
                ByteSize(least)
            );
            return Err(Error::Usage(problem));
        }
        let unlimited = Limits::default().tokens;
        Ok(Limits {
            body_bytes: usize::try_from(self.max_body.0).unwrap_or(usize::MAX),
            memory_bytes: usize::try_from(self.max_request_memory.0).unwrap_or(usize::MAX),
            prompts: self.max_prompts,
            choices: self.max_choices,
            tokens: self.max_tokens.unwrap_or(unlimited),
            stops: self.max_stops,
            strict: self.strict,
        })
    }
}
