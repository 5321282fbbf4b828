//! Every promise of the service as a number: starts the server, measures it from outside, and compares with a limit.
//!
//!     cargo test --locked --test reliability -- [ci|release] [R13 R9 …] [--server PATH] [--json]
//!
//! `ci` takes about five minutes, with short loads and few repetitions; `release` does what the limits stand for and
//! takes an hour and a half. Each check prints a line: its number and name, the verdict, the figures, and in brackets the
//! limit of each. A check is skipped if it needs a tool that is not installed, or if it judges times while other
//! programs take the cores. `docs/reliability.md` has the results of a whole run.

mod access;
mod arguments;
mod bad_inputs;
mod checks;
mod client;
mod control_group;
mod covered;
mod damaged_files;
mod disconnect;
mod drain;
mod egress;
mod fairness;
mod findings;
mod idle;
mod load;
mod machine;
mod memory;
mod models;
mod observability;
mod overload;
mod proxies;
mod raw_http;
mod restart;
mod same_bytes;
mod server;
mod slow_clients;
mod soak;
mod supply;
mod text;

#[path = "../fuzz/inputs.rs"]
mod inputs;
#[path = "../fuzz/requests.rs"]
mod requests;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::Instant;

use futures_util::FutureExt;
use serde_json::json;

use arguments::Arguments;
use checks::{CHECKS, Check};
use findings::{Findings, Problem, Verdict};
use machine::Spent;

/// The short form looks for what is broken, with loads too short for a 99th percentile and the load's source on the same
/// cores: there, times fail only beyond this many times their limit. What exceeds the limit itself is marked all the same.
const CI_SLACK: f64 = 4.0;

fn main() -> ExitCode {
    let arguments = match Arguments::parse() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    server::allow_many_descriptors();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for check in CHECKS.iter().filter(|check| arguments.names(check.number)) {
        match run(&runtime, check, &arguments) {
            Verdict::Passed => passed += 1,
            Verdict::Failed => failed += 1,
            Verdict::Skipped(_) => skipped += 1,
        }
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    ExitCode::from(u8::from(failed > 0))
}

/// Runs one check and prints its line.
fn run(runtime: &tokio::runtime::Runtime, check: &Check, arguments: &Arguments) -> Verdict {
    let (spent, began) = (Spent::now(), Instant::now());
    let context = arguments.context();
    let slack = context.of(CI_SLACK, 1.0);
    let check_it = AssertUnwindSafe((check.run)(context)).catch_unwind();
    let outcome: Result<Findings, Problem> = runtime.block_on(check_it).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.unwrap_or_else(|| "a panic".to_owned()).into())
    });
    let others = spent.others_since();
    let seconds = began.elapsed().as_secs_f64();
    let (verdict, findings, problem) = match outcome {
        Ok(findings) => (
            findings.verdict(others, machine::QUIET, slack),
            findings,
            None,
        ),
        Err(problem) => (
            Verdict::Failed,
            Findings::default(),
            Some(problem.to_string()),
        ),
    };
    let (word, reason) = match &verdict {
        Verdict::Passed => ("passed", None),
        Verdict::Failed => ("FAILED", problem),
        Verdict::Skipped(why) => ("skipped", Some(why.clone())),
    };
    if arguments.json {
        let mut line = json!({
            "number": check.number, "name": check.name, "verdict": word.to_lowercase(), "reason": reason,
            "seconds": seconds, "other_load": others,
        });
        if let (Some(line), Some(found)) = (line.as_object_mut(), findings.json().as_object()) {
            line.extend(found.clone());
        }
        println!("{line}");
    } else {
        let reason = reason
            .map(|reason| format!("{reason}. "))
            .unwrap_or_default();
        println!(
            "{:<4} {:<22} {word:<7} {reason}{findings} [{seconds:.0} s]",
            check.number, check.name
        );
    }
    verdict
}
