//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Measures the service against its limits. Names of checks, such as R13, select some of them.
#[derive(Debug, Parser)]
pub struct Arguments {
    /// `ci` (short, the default) or `release` (complete), and numbers of checks.
    words: Vec<String>,
    /// The server to measure.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_microgranite"))]
    server: PathBuf,
    /// One line of JSON for each check.
    #[arg(long)]
    pub json: bool,
    /// Prints the checks and runs none.
    #[arg(long)]
    list: bool,
    /// Becomes the program that a check measures to see whether it would notice a leak.
    #[arg(long, hide = true)]
    leak: bool,
}

/// How much a check does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Ci,
    Release,
}

/// What a check runs with.
#[derive(Debug, Clone)]
pub struct Context {
    pub server: PathBuf,
    pub form: Form,
}

impl Context {
    /// A number of repetitions, or a time, in the form that runs.
    pub fn of<T>(&self, ci: T, release: T) -> T {
        match self.form {
            Form::Ci => ci,
            Form::Release => release,
        }
    }
}

impl Arguments {
    /// # Errors
    /// The exit code, if there is nothing to run.
    pub fn parse() -> Result<Self, ExitCode> {
        let arguments = <Self as Parser>::parse();
        if arguments.leak {
            crate::soak::leak();
        }
        if arguments.list {
            for check in crate::checks::CHECKS {
                println!("{:<4} {:<22} {}", check.number, check.name, check.promise);
            }
            return Err(ExitCode::SUCCESS);
        }
        for word in arguments.numbers() {
            if !crate::checks::CHECKS
                .iter()
                .any(|check| check.number == word)
            {
                eprintln!("error: {word} is no check; --list prints them");
                return Err(ExitCode::from(64));
            }
        }
        Ok(arguments)
    }

    fn numbers(&self) -> impl Iterator<Item = &str> {
        let words = self.words.iter().map(String::as_str);
        words.filter(|word| !["ci", "release"].contains(word))
    }

    /// Whether the check with this number is to run.
    pub fn names(&self, number: &str) -> bool {
        self.numbers().next().is_none() || self.numbers().any(|word| word == number)
    }

    pub fn context(&self) -> Context {
        let is_release = self.words.iter().any(|word| word == "release");
        Context {
            server: self.server.clone(),
            form: if is_release { Form::Release } else { Form::Ci },
        }
    }
}
