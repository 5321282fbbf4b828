//! Checks that other tests make in full: they are run through cargo, or named.

use std::process::Command;

use crate::arguments::Context;
use crate::findings::{Findings, Problem};

/// Runs tests of another binary and counts those that pass.
async fn run(
    arguments: &'static [&'static str],
    what: &str,
    least: u64,
) -> Result<Findings, Problem> {
    // Cargo sets this for the tests it runs.
    let Some(cargo) = std::env::var_os("CARGO") else {
        let command = arguments.join(" ");
        return Ok(Findings::skipped(format!(
            "run this program through cargo, or `cargo test --locked {command}` by itself"
        )));
    };
    let output = tokio::task::spawn_blocking(move || {
        Command::new(cargo)
            .args(["test", "--locked"])
            .args(arguments)
            .env_remove("MICROGRANITE_ASSETS")
            .output()
    });
    let output = output.await??;
    let text = String::from_utf8_lossy(&output.stdout);
    let counts = text
        .lines()
        .filter_map(|line| line.strip_prefix("test result: "));
    let (mut passed, mut failed) = (0, 0);
    for line in counts {
        let number = |word: &str| {
            let (before, _) = line.split_once(word)?;
            before.trim().rsplit(' ').next()?.parse::<u64>().ok()
        };
        passed += number(" passed").unwrap_or(0);
        failed += number(" failed").unwrap_or(0);
    }
    let mut found = Findings::default();
    found.at_least(
        &format!("tests of {what} passed"),
        passed as f64,
        "",
        least as f64,
    );
    found.never("failed", failed as usize);
    found.always("ended well", usize::from(output.status.success()), 1);
    Ok(found)
}

/// R5: weights that change while they are served.
pub async fn changed_weights(_: Context) -> Result<Findings, Problem> {
    run(
        &["--test", "service", "damage::"],
        "changed, shortened and damaged weights",
        4,
    )
    .await
}

/// R36: a step that never ends, a panic, numbers that are none, memory that is refused.
pub async fn faults(_: Context) -> Result<Findings, Problem> {
    run(
        &[
            "--test",
            "service",
            "--",
            "stalls::",
            "an_engine_that_dies",
            "a_failure_",
            "memory_that_the_system_refuses",
        ],
        "stalls, panics, NaN and refused memory",
        7,
    )
    .await
}

/// R3, R33, R34 and R35 have commands of their own.
pub async fn elsewhere(command: &'static str) -> Result<Findings, Problem> {
    Ok(Findings::skipped(format!(
        "a command of its own: {command}"
    )))
}
