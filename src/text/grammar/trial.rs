//! Tries to compile a grammar in a child process with limits.
//!
//! The library that compiles grammars recurses as deep as their references go, has no limit on time, and aborts the
//! process when memory or stack run out. So the same work is first done by a child process of the same program, with
//! limits on memory, stack and time. It is killed when the deadline passes or the client disconnects. A grammar that
//! compiles there also compiles here, because the same code does the same work with more stack. Only the vocabulary
//! differs, and the work that depends on it is bounded by fuel.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::Grammar;
use super::compile::{Compiler, Vocabulary};
use crate::memory;

/// The hidden command of the program that runs in the child.
pub const COMMAND: &str = "check-grammar";
/// The stack of the child's compiling thread. A chain of a thousand references takes about a tenth of it.
const STACK: usize = 48 << 20;
/// The heap of the child. A schema of 1,500 properties, or a chain of 900 references, takes a third of it. Two children
/// at once fit the margin that start-up keeps free.
const HEAP: u64 = 64 << 20;
/// Address space for what a process maps at its start and what allocators reserve without using it.
const ADDRESS_SPACE: u64 = 1 << 30;
/// The niceness of compiling. It gives the engine's compute threads three times the weight, so that streams stay even.
pub const NICE: i32 = 5;

/// The stack for compiling a client's grammar in this process: larger than the child's, so that a grammar that fitted
/// there fits here.
pub const MORE_STACK: usize = STACK + (16 << 20);

/// A grammar and everything on which its compilation depends.
#[derive(Serialize, Deserialize)]
struct Job {
    grammar: Grammar,
    seconds: u64,
    vocabulary_size: usize,
    eos: Vec<u32>,
    special: Vec<(u32, Vec<u8>)>,
}

#[derive(Serialize, Deserialize)]
enum Verdict {
    Fits { bytes: u64 },
    Refused(String),
}

/// Why the trial of a grammar failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It is invalid or too large; with a message for its author.
    Refused(String),
    /// It takes too long.
    TimedOut,
    /// The child process could not be started; with a message for the log.
    Unavailable(String),
}

/// Tries grammars for one vocabulary.
pub struct Trial {
    program: PathBuf,
    deadline: Duration,
    vocabulary_size: usize,
    eos: Vec<u32>,
    special: Vec<(u32, Vec<u8>)>,
}

impl Trial {
    /// A trial with `program`, the path of this program.
    pub fn new(program: &Path, deadline: Duration, vocabulary: &Vocabulary) -> Self {
        let (size, eos) = vocabulary.size();
        Self {
            program: program.to_owned(),
            deadline,
            vocabulary_size: size,
            eos: eos.to_owned(),
            special: vocabulary.special(),
        }
    }

    /// Compiles `grammar` in a child process and returns the memory that the result takes. Dropping the future kills
    /// the child.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn run(&self, grammar: &Grammar) -> Result<u64, Failure> {
        let job = Job {
            grammar: grammar.clone(),
            seconds: self.deadline.as_secs() + 1,
            vocabulary_size: self.vocabulary_size,
            eos: self.eos.clone(),
            special: self.special.clone(),
        };
        let unavailable = |problem: std::io::Error| Failure::Unavailable(problem.to_string());
        let job = serde_json::to_vec(&job).expect("texts and numbers are always JSON");
        // All files of this program, including its listening sockets, are opened close-on-exec, so the child does not
        // inherit them.
        let mut child = Command::new(&self.program)
            .arg(COMMAND)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(unavailable)?;
        let mut stdin = child.stdin.take().expect("it is piped");
        let work = async {
            // If the child has died early, its exit status gives the reason.
            let _ = stdin.write_all(&job).await;
            drop(stdin);
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(self.deadline, work)
            .await
            .map_err(|_elapsed| Failure::TimedOut)?
            .map_err(unavailable)?;
        match serde_json::from_slice(&output.stdout) {
            Ok(Verdict::Fits { bytes }) if output.status.success() => Ok(bytes),
            Ok(Verdict::Refused(problem)) => Err(Failure::Refused(problem)),
            _ => Err(died(output.status)),
        }
    }
}

/// The failure of a child that ended without a verdict.
fn died(status: ExitStatus) -> Failure {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        // The limit on CPU time also ends it with this signal, and so does a system that has run out of memory.
        Some(signal) if signal == Signal::KILL.as_raw() => Failure::TimedOut,
        Some(_) => Failure::Refused("it takes too much memory or is nested too deep".to_owned()),
        None => Failure::Unavailable(format!("the process for grammars ended with {status}")),
    }
}

/// The child's part: reads a job from standard input and writes the verdict to standard output.
///
/// # Errors
/// When the job cannot be read or the verdict not be written.
pub fn run_here(mut input: impl Read, mut output: impl Write) -> std::io::Result<()> {
    restrict()?;
    let mut job = Vec::new();
    input.read_to_end(&mut job)?;
    let job: Job = serde_json::from_slice(&job)?;
    limit(Resource::Cpu, job.seconds)?;
    let thread = std::thread::Builder::new().stack_size(STACK);
    let thread = thread.spawn(move || verdict(&job))?;
    let verdict = thread
        .join()
        .unwrap_or_else(|_panic| Verdict::Refused("the compiler has no way to express it".into()));
    output.write_all(&serde_json::to_vec(&verdict)?)
}

/// Compiles a grammar as the child does, in this process and without its limits. Returns whether it compiles.
#[cfg(feature = "fuzzing")]
pub fn try_here(grammar: Grammar) -> bool {
    let job = Job {
        grammar,
        seconds: 1,
        vocabulary_size: 2,
        eos: vec![0],
        special: Vec::new(),
    };
    let thread = std::thread::Builder::new().stack_size(2 * STACK);
    let thread = thread.spawn(move || verdict(&job)).expect("a thread");
    let verdict = thread.join().expect("no panic");
    matches!(verdict, Verdict::Fits { .. })
}

fn verdict(job: &Job) -> Verdict {
    let vocabulary = Vocabulary::bytes(job.vocabulary_size, job.eos.clone(), job.special.clone());
    let held = || memory::resident().map_or(0, |resident| resident.anon);
    let compiler = match Compiler::new(&vocabulary) {
        Ok(compiler) => compiler,
        Err(problem) => return Verdict::Refused(problem),
    };
    let before = held();
    match compiler.compile(&job.grammar) {
        Ok(compiled) => {
            let bytes = held().saturating_sub(before);
            // Dropping it is part of the trial.
            drop(compiled);
            Verdict::Fits { bytes }
        }
        Err(problem) => Verdict::Refused(problem),
    }
}

/// Sets the limits of this process, before it reads the grammar.
fn restrict() -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // A lower priority, and being the first process to be killed when memory runs out, are optional: some sandboxes
    // forbid setting them.
    let _ = rustix::process::setpriority_process(None, NICE);
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    limit(Resource::Core, 0)?;
    limit(Resource::Data, HEAP + STACK as u64)?;
    limit(Resource::As, ADDRESS_SPACE)
}

/// Lowers a limit to `value`, unless it is lower already.
fn limit(resource: Resource, value: u64) -> std::io::Result<()> {
    let most = rustix::process::getrlimit(resource).maximum;
    let value = Some(most.map_or(value, |most| most.min(value)));
    let limit = Rlimit {
        current: value,
        maximum: value,
    };
    Ok(rustix::process::setrlimit(resource, limit)?)
}
