//! `microgranite completions` and `microgranite man`: what packages install for shells and for `man`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use crate::build;
use crate::error::{Error, Result};

/// Print the completions of a shell.
///
/// For example `microgranite completions bash > ~/.local/share/bash-completion/completions/microgranite`. Packages
/// install them.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell that reads them.
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

/// Print the manual page.
///
/// `microgranite man | man -l -` shows it. Packages install it.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Write a page for the program and one for each of its commands into this folder, which must exist, instead of
    /// printing the page of the program.
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Prints the completions of a shell on standard output.
///
/// # Errors
/// [`Error::Io`] when they cannot be written.
pub fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut text = Vec::new();
    let mut command = documented();
    clap_complete::generate(args.shell, &mut command, env!("CARGO_PKG_NAME"), &mut text);
    print(&text)
}

/// Prints the manual page, or writes all of them.
///
/// # Errors
/// [`Error::Io`] when they cannot be written.
pub fn man(args: &ManArgs) -> Result<()> {
    if let Some(folder) = &args.output {
        let written = clap_mangen::generate_to(documented(), folder);
        return written.map_err(|e| Error::io(folder, e));
    }
    let mut text = Vec::new();
    // Writing to memory does not fail.
    let _ = clap_mangen::Man::new(documented()).render(&mut text);
    print(&text)
}

/// The command line without its hidden commands, which are for the program's own use: the completions would offer them.
fn documented() -> Command {
    let all = Cli::command();
    let shown = all
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    Command::new(env!("CARGO_PKG_NAME"))
        .version(build::VERSION_AND_ID)
        .about(all.get_about().cloned().unwrap_or_default())
        .long_about(all.get_long_about().cloned().unwrap_or_default())
        .after_help(all.get_after_help().cloned().unwrap_or_default())
        .args(all.get_arguments())
        .subcommands(shown)
}

fn print(text: &[u8]) -> Result<()> {
    let written = std::io::stdout().lock().write_all(text);
    written.map_err(|e| Error::io(Path::new("standard output"), e))
}
