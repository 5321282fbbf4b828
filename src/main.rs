//! The `microgranite` binary.

use std::process::ExitCode;

use clap::Parser;
use microgranite::cli::{self, Cli};

/// Bad usage, as `sysexits` numbers it; clap would say 2.
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(message) => {
            // Nowhere is left to report a failure to print. Help and version come this way too, as successes.
            let _ = message.print();
            let code = if message.use_stderr() { EXIT_USAGE } else { 0 };
            return ExitCode::from(code);
        }
    };
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
