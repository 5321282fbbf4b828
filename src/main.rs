//! The `microgranite` binary.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use microgranite::cli::{self, Ending};
use microgranite::error::Error;
use microgranite::{logging, lookup};

/// Wrong usage, by the `sysexits` numbers; clap's own code would be 2.
const EXIT_USAGE: u8 = 64;

/// How long to wait for the last lines to be written: a slow reader still gets them, one that does not read delays the
/// exit no longer.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    lookup::use_built_in_modules();
    let code = run();
    logging::flush(FLUSH_LIMIT);
    ExitCode::from(code)
}

fn run() -> u8 {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let variables: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    let cli = match cli::parse(&arguments, &variables) {
        Ok(cli) => cli,
        Err(Ending::Shown(text)) => {
            // A failure to print cannot be reported anywhere.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return 0;
        }
        Err(Ending::BadUsage(text)) => {
            logging::write_stderr(&format!("error: {}\n", text.trim_end()));
            return EXIT_USAGE;
        }
    };
    let defect = |_panic| Err(Error::Internal("a panic; the log has it".into()));
    match catch_unwind(AssertUnwindSafe(|| cli::run(cli))).unwrap_or_else(defect) {
        Ok(()) => 0,
        Err(error) => {
            logging::write_stderr(&format!("error: {error}\n"));
            error.exit_code()
        }
    }
}
