//! The flags of `serve` that limit requests.

use std::path::PathBuf;
use std::time::Duration;

use super::plan::{ClientSizes, GivenSizes, LEAST_BODIES};
use crate::config::{self, ByteSize};
use crate::error::{Error, Result};
use crate::http::limits::Limits;
use crate::text::grammar;

/// Limits on requests. A request beyond a limit is refused with an error that names the field, never truncated.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits on one request")]
pub struct LimitArgs {
    /// Largest request body, 1KiB to 64MiB. While a large one is tokenized, it takes up to 320 times its size in memory.
    /// [default: 1MiB, or less where the process may use less than 4 GiB]
    #[arg(
        long,
        env = "MICROGRANITE_MAX_BODY",
        value_name = "SIZE",
        value_parser = config::size::<1024, MOST_BODY_BYTES>
    )]
    max_body: Option<ByteSize>,

    /// Memory for all requests together: bodies, prompts and assembled answers. Less suits a smaller machine, but refuses long
    /// requests with 503 when many arrive at once. Requests up to 16 KiB do not count. At least four times --max-body, at
    /// most 1024GiB.
    /// [default: 64MiB, or less where the process may use less than 4 GiB]
    #[arg(
        long,
        env = "MICROGRANITE_MAX_REQUEST_MEMORY",
        value_name = "SIZE",
        value_parser = config::size::<4096, MOST_REQUEST_MEMORY>
    )]
    max_request_memory: Option<ByteSize>,

    /// Largest total size of a request's headers, 1KiB to 1MiB. Each connection can use as much memory.
    #[arg(
        long,
        env = "MICROGRANITE_MAX_HEADER",
        value_name = "SIZE",
        value_parser = config::size::<1024, MOST_HEADER_BYTES>,
        default_value = "32KiB"
    )]
    max_header: ByteSize,

    /// Prompts in one request, 1 to 1024. A higher limit lets one client fill the queue with a single request.
    #[arg(long, env = "MICROGRANITE_MAX_PROMPTS", value_name = "N", value_parser = config::whole::<1, 1024>, default_value_t = Limits::default().prompts)]
    max_prompts: usize,

    /// Answers to each prompt (n, best_of), 1 to 1024. A higher limit lets one client fill the queue with a single
    /// request.
    #[arg(long, env = "MICROGRANITE_MAX_CHOICES", value_name = "N", value_parser = config::whole::<1, 1024>, default_value_t = Limits::default().choices)]
    max_choices: usize,

    /// Largest number of tokens of each answer (max_tokens). A lower limit keeps single answers from occupying a batch
    /// slot for long. [default: what the context leaves]
    #[arg(long, env = "MICROGRANITE_MAX_TOKENS", value_name = "N", value_parser = config::tokens)]
    max_tokens: Option<usize>,

    /// Stop strings, 0 to 1024. Each takes a little time per character.
    #[arg(long, env = "MICROGRANITE_MAX_STOPS", value_name = "N", value_parser = config::whole::<0, 1024>, default_value_t = Limits::default().stops)]
    max_stops: usize,

    /// Seconds that compiling a schema, a regular expression or a grammar may take, 1 to 60. More allows larger ones;
    /// less limits the time that a hostile one can occupy a compiler.
    #[arg(long, env = "MICROGRANITE_GRAMMAR_TIMEOUT", value_name = "SECS", default_value = "2", value_parser = grammar_timeout)]
    grammar_timeout: Duration,

    /// Refuse unknown fields with 400, instead of listing them in X-Ignored-Params, and schemas that cannot be enforced
    /// completely, instead of listing the keywords in X-Unenforced-Schema-Keywords.
    #[arg(long, env = "MICROGRANITE_STRICT", value_parser = clap::builder::BoolishValueParser::new())]
    strict: bool,

    /// Add a receipt to responses: the time that the request waited, was prefilled and decoded, its share of processor time, and
    /// its tokens. Clients that check responses strictly may refuse the additional field.
    #[arg(long, env = "MICROGRANITE_RECEIPTS", value_parser = clap::builder::BoolishValueParser::new())]
    receipts: bool,
}

/// Larger than the headers of any real request.
const MOST_HEADER_BYTES: u64 = 1 << 20;
/// Larger than a prompt of a hundred thousand ids.
const MOST_BODY_BYTES: u64 = 64 << 20;
/// More than any machine has.
const MOST_REQUEST_MEMORY: u64 = 1 << 40;

impl LimitArgs {
    /// Bytes of a request's headers.
    pub fn header_bytes(&self) -> usize {
        self.max_header.0 as usize
    }

    /// How grammars are compiled: first tried in a child process of this same program. On Linux its path is valid even
    /// if the file was replaced or deleted.
    pub fn grammars(&self) -> grammar::Settings {
        let itself = PathBuf::from("/proc/self/exe");
        let program = match itself.exists() {
            true => Some(itself),
            false => std::env::current_exe().ok(),
        };
        grammar::Settings {
            deadline: self.grammar_timeout,
            program: Some(program.unwrap_or_default()),
        }
    }

    /// The sizes that the operator gave.
    pub fn given_sizes(&self) -> GivenSizes {
        let bytes = |size: ByteSize| usize::try_from(size.0).unwrap_or(usize::MAX);
        GivenSizes {
            body_bytes: self.max_body.map(bytes),
            request_bytes: self.max_request_memory.map(bytes),
            connections: None,
        }
    }

    /// The limits as the service takes them, with the sizes that [`Self::given_sizes`] were completed to.
    ///
    /// # Errors
    /// [`Error::Usage`] when the longest body and what is made of it do not fit the memory for requests.
    pub fn limits(&self, sizes: ClientSizes) -> Result<Limits> {
        let least = sizes.body_bytes.saturating_mul(LEAST_BODIES);
        if sizes.request_bytes < least {
            let problem = format!(
                "--max-request-memory must be at least {LEAST_BODIES} times --max-body: {}",
                ByteSize(least as u64)
            );
            return Err(Error::Usage(problem));
        }
        let unlimited = Limits::default().tokens;
        Ok(Limits {
            body_bytes: sizes.body_bytes,
            memory_bytes: sizes.request_bytes,
            prompts: self.max_prompts,
            choices: self.max_choices,
            tokens: self.max_tokens.unwrap_or(unlimited),
            stops: self.max_stops,
            strict: self.strict,
            receipts: self.receipts,
        })
    }
}

/// A minute is longer than any grammar in a request needs.
fn grammar_timeout(text: &str) -> std::result::Result<Duration, String> {
    let timeout = config::seconds(text)?;
    match timeout.as_secs() {
        1..=60 => Ok(timeout),
        _ => Err("write whole seconds from 1 to 60".to_owned()),
    }
}
