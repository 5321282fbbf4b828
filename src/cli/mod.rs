//! The command line: one short file per command, which turns the arguments into calls to the rest of the program.
//!
//! Logs go to standard error, results to standard output. Only this folder reads the environment.

pub mod bench;
mod choices;
mod client;
pub mod eval;
mod figures;
pub mod inspect;
pub mod manual;
mod parse;
mod progress;
pub mod pull;
pub mod quantize;
pub mod run;
pub mod savings;
pub mod serve;
mod signature;
pub mod status;
mod texts;

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::path::Path;

use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand};
pub use parse::{Ending, parse};
use serde::Serialize;

use crate::build;
use crate::error::{Error, Result};
use crate::int8::kernels;
use crate::logging::{self, Filter, LogFormat};
use crate::model::Placement;
use crate::sources;
use crate::text::grammar;

/// Serve IBM Granite at eight bits on plain CPUs.
///
/// Granite's text models of generations 3 and 4 run: dense ones, mixtures of experts (1b-a400m, 3b-a800m), hybrids of
/// Mamba-2 and attention (h-350m, h-1b, h-micro) and hybrids with experts (h-tiny, h-small); so do models of Llama's
/// architecture with a byte-level BPE tokenizer. Anything else is refused in one line that says what to take instead.
#[derive(Debug, Parser)]
#[command(version = build::VERSION_AND_ID, about, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// The format of log lines: text to read, json for log collectors.
    #[arg(
        long,
        global = true,
        help_heading = "Logging",
        env = "MICROGRANITE_LOG_FORMAT",
        value_enum,
        default_value = "text"
    )]
    log_format: LogFormat,

    /// What to log: error, warn, info, debug, or targets such as microgranite=debug. Prompts and answers are never
    /// logged. [default: info; warn for run and status, where a person reads the terminal]
    #[arg(
        long,
        global = true,
        help_heading = "Logging",
        env = "MICROGRANITE_LOG",
        value_name = "FILTER"
    )]
    log: Option<Filter>,

    /// The instruction set to compute with. Of use for comparing them, and for finding out whether a fault lies in one.
    /// [default: the fastest one of this CPU]
    #[arg(
        long,
        global = true,
        help_heading = "Hardware",
        env = "MICROGRANITE_KERNEL",
        value_name = "NAME",
        value_parser = PossibleValuesParser::new(kernels::survey().into_iter().map(|(name, _)| name))
    )]
    kernel: Option<String>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Args>),
    Run(Box<run::Args>),
    #[command(visible_alias = "ps")]
    Status(status::Args),
    Quantize(quantize::Args),
    Eval(eval::Args),
    VerifySavings(savings::Args),
    Bench(bench::Args),
    Pull(pull::Args),
    Inspect(inspect::Args),
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
    /// For internal use by the server: compiles one grammar within limits.
    #[command(hide = true, name = grammar::trial::COMMAND)]
    CheckGrammar,
    /// For internal use by verify-savings: runs one side of the comparison.
    #[command(hide = true, name = savings::side::COMMAND)]
    MeasureFormat(savings::side::Args),
}

impl Command {
    /// What to log unless the user says otherwise.
    fn log_filter(&self) -> Filter {
        match self {
            Self::Run(_) | Self::Status(_) => Filter::warnings(),
            _ => Filter::default(),
        }
    }
}

const EXIT_CODES: &str = "\
Exit codes: 0 success, 64 bad usage, 65 bad model file, 66 file not found, 69 download failed or no server,
70 defect in this program, 74 reading or writing failed, 75 something hung when it should have ended,
78 settings that cannot work here.";

/// Runs the command.
///
/// # Errors
/// The error that ends the program, with its exit code.
pub fn run(cli: Cli) -> Result<()> {
    if matches!(cli.command, Command::CheckGrammar) {
        let pipes = (std::io::stdin(), std::io::stdout());
        let checked = grammar::trial::run_here(pipes.0, pipes.1);
        return checked.map_err(|problem| Error::Internal(problem.to_string()));
    }
    let filter = cli.log.unwrap_or_else(|| cli.command.log_filter());
    logging::init(cli.log_format, &filter);
    if let Some(name) = &cli.kernel {
        kernels::choose(name)
            .map_err(|problem| Error::Config(format!("--kernel {name}: {problem}")))?;
    }
    let variable = |name: &str| std::env::var(name).ok();
    let sources = sources::Settings::from_variables(variable, std::io::stderr().is_terminal());
    match cli.command {
        Command::Serve(args) => serve::run(*args, sources),
        Command::Run(args) => run::run(*args, &sources),
        Command::Status(args) => status::run(args),
        Command::Quantize(args) => quantize::run(args, &sources),
        Command::Eval(args) => eval::run(&args, &sources),
        Command::VerifySavings(args) => savings::run(&args, &sources),
        Command::MeasureFormat(args) => savings::side::run(&args, &sources),
        Command::Bench(args) => bench::run(&args, &sources),
        Command::Pull(args) => pull::run(args, &sources),
        Command::Inspect(args) => inspect::run(args, &sources),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
        Command::CheckGrammar => unreachable!("it ran above"),
    }
}

/// The flag of commands that run packed models.
#[derive(Debug, Clone, Copy, clap::Args)]
struct WeightsArg {
    /// Where the weights of a packed model are kept while it runs. mmap starts at once and shares memory with other
    /// servers of the same file. copy takes memory of its own and a moment to fill it, but uses huge pages, which makes
    /// a single stream up to a fifth faster.
    #[arg(
        long,
        env = "MICROGRANITE_WEIGHTS",
        value_enum,
        value_name = "WHERE",
        default_value_t
    )]
    weights: Placement,
}

/// Prints a report on standard output, as JSON or as text.
fn print(report: &(impl Serialize + Display), json: bool) -> Result<()> {
    let text = if json {
        let json = serde_json::to_string_pretty(report);
        json.map_err(|e| Error::Internal(e.to_string()))?
    } else {
        report.to_string()
    };
    let written = writeln!(std::io::stdout().lock(), "{}", text.trim_end());
    written.map_err(|e| Error::io(Path::new("standard output"), e))
}
