//! Runs the text scripts beside this file: given these arrivals, these steps.
//!
//! A line that begins with `>` is a command; the lines below it, up to the next command, are what it must say.
//!
//! | command | what it does and says |
//! |---|---|
//! | `settings batch=N rows=N prompt_rows=N pages=N` | starts over |
//! | `arrive NAME prompt=N tokens=N` | a generation arrives |
//! | `step` | one step; the positions that each generation runs, the token it gets, and who has all its tokens |
//! | `leave NAME` | a generation is cancelled |
//! | `state` | who runs, who waits, pages that hold tokens and pages that nobody has reserved |

use std::fmt::Write;
use std::path::Path;

use microgranite::engine::scheduler::{Budget, Scheduler};

/// What the script knows of a generation.
struct Job {
    name: String,
    tokens: usize,
    generated: usize,
}

#[test]
fn every_script_says_what_happens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scheduler");
    let mut scripts: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    scripts.sort();
    assert!(scripts.len() >= 7, "scripts are missing: {scripts:?}");
    for path in scripts {
        let script = std::fs::read_to_string(&path).unwrap();
        let happened = run(&script);
        assert!(
            happened == script,
            "{} does not say what happened:\n{happened}",
            path.display()
        );
    }
}

/// The script with the answers replaced by what really happened.
fn run(script: &str) -> String {
    let mut scheduler = settings(&[1, 1, 1, 1]);
    let mut happened = String::new();
    let mut in_answer = false;
    for line in script.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            writeln!(happened, "{line}").unwrap();
            happened += &execute(&mut scheduler, command);
            in_answer = true;
        } else if line.is_empty() || line.starts_with('#') {
            writeln!(happened, "{line}").unwrap();
            in_answer = false;
        } else {
            assert!(in_answer, "an answer without a command: {line}");
        }
    }
    happened
}

fn execute(scheduler: &mut Scheduler<Job>, command: &str) -> String {
    let words: Vec<&str> = command.split(' ').collect();
    match words[..] {
        ["settings", batch, rows, prompt_rows, pages] => {
            *scheduler = settings(&[
                number(batch, "batch"),
                number(rows, "rows"),
                number(prompt_rows, "prompt_rows"),
                number(pages, "pages"),
            ]);
            String::new()
        }
        ["arrive", name, prompt, tokens] => {
            let (prompt, tokens) = (number(prompt, "prompt"), number(tokens, "tokens"));
            let job = Job {
                name: name.into(),
                tokens,
                generated: 0,
            };
            scheduler.arrive(job, prompt, tokens);
            String::new()
        }
        ["leave", name] => {
            let gone = scheduler.remove_if(|job| job.name == name);
            assert_eq!(gone.len(), 1, "{name} is not there");
            String::new()
        }
        ["step"] => step(scheduler),
        ["state"] => state(scheduler),
        _ => panic!("not a command: {command}"),
    }
}

fn step(scheduler: &mut Scheduler<Job>) -> String {
    scheduler.admit();
    let mut plan = Vec::new();
    scheduler.plan(&mut plan);
    let mut said = String::new();
    if plan.is_empty() {
        said += "nothing to do\n";
    }
    for work in plan {
        let job = &mut scheduler.running_mut()[work.index].job;
        let end = work.start + work.rows;
        write!(said, "{} {}..{end}", job.name, work.start).unwrap();
        if work.logit_rows > 0 {
            job.generated += 1;
            write!(said, ", token {}", job.generated).unwrap();
        }
        said.push('\n');
    }
    for job in scheduler.remove_if(|job| job.generated == job.tokens) {
        writeln!(said, "{} ends", job.name).unwrap();
    }
    said
}

fn state(scheduler: &mut Scheduler<Job>) -> String {
    let names: Vec<&str> = scheduler
        .running()
        .iter()
        .map(|running| running.job.name.as_str())
        .collect();
    format!(
        "running {names:?}, {} waiting, pages {} used {} free\n",
        scheduler.waiting(),
        scheduler.pages_used(),
        scheduler.pages_free(),
    )
    .replace('"', "")
}

fn settings(values: &[usize; 4]) -> Scheduler<Job> {
    let [max_batch, step_tokens, prompt_rows_while_decoding, pages] = *values;
    let budget = Budget {
        max_batch,
        step_tokens,
        prompt_rows_while_decoding,
    };
    Scheduler::new(budget, pages)
}

fn number(word: &str, name: &str) -> usize {
    word.strip_prefix(name)
        .and_then(|rest| rest.strip_prefix('='))
        .and_then(|value| value.parse().ok())
        .unwrap_or_else(|| panic!("expected {name}=N, not {word}"))
}
