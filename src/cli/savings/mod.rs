//! `verify-savings`: measures what int8 saves, and what it costs, on one checkpoint.

mod energy;
mod picture;
mod report;
pub mod side;

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::eval;
use super::print;
use crate::build;
use crate::config;
use crate::error::{Error, Result};
use crate::int8::kernels;
use crate::model::ModelConfig;
use crate::model::packed::{EvaluationRecord, SAVINGS, SavingsRecord};
use crate::sources::{self, Checkpoint, Contents, Reference};
use report::Report;
use side::{Format, Printed};

/// Measure what int8 saves: memory, start and processor time, energy and speed beside f32, and the loss of accuracy.
///
/// The model runs twice, in int8 as the server runs it and in f32 in the reference that eval compares with, one after the
/// other, each in a process of its own; then eval compares what they predict. Nothing is computed from sizes. The f32
/// side takes four bytes of memory per weight.
///
/// The result for a packed model is kept in its folder as savings.json, where the server finds and publishes it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model: a folder, a .gguf file, hf:OWNER/NAME[@REVISION][:LABEL], ollama:NAME[:TAG],
    /// oci://HOST/REPOSITORY[:TAG], or demo.
    ///
    /// For a hub repository, its safetensors are used, or else the GGUF file that is best for int8: Q8_0, then floats,
    /// then the most bits. :LABEL selects another, as in hf:OWNER/NAME:Q4_K_M. The address of a model's page on
    /// huggingface.co works too.
    #[arg(value_name = "REF")]
    reference: Reference,
    /// The model whose float weights run in f32, if REF is packed: the checkpoint it was made from. [default: REF itself]
    #[arg(long, value_name = "REF")]
    against: Option<Reference>,
    /// Prompt tokens to time.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = config::tokens)]
    prompt: usize,
    /// Decoding steps to time, 1 to 10000; the median counts.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = config::whole::<1, 10_000>)]
    steps: usize,
    /// Tokens of text on which the predictions are compared. Fewer take less time, and have larger standard errors.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = config::tokens)]
    tokens: usize,
    /// Compute threads of both sides. [default: the number of cores, or the cgroup's CPU quota]
    #[arg(long, env = "MICROGRANITE_THREADS", value_name = "N", value_parser = config::thread_count)]
    threads: Option<usize>,
    /// Write the result to this file as well, for serve --savings.
    #[arg(long, value_name = "FILE.json")]
    out: Option<PathBuf>,
    /// Draw the result to this file.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Measures, writes the files and prints the report on standard output.
///
/// # Errors
/// The errors of the two sides, with their exit codes, [`Error::Usage`] for a packed model without `--against`, and
/// [`Error::Io`] for files that cannot be written.
pub fn run(args: &Args, sources: &sources::Settings) -> Result<()> {
    if let Some(file) = &args.plot {
        eval::check_is_svg(file)?;
    }
    let checkpoint = sources::open(&args.reference, sources)?;
    let float = match &args.against {
        Some(against) => sources::open(against, sources)?,
        None => sources::open(&args.reference, sources)?,
    };
    if float.packed().is_some() {
        let problem = "a packed model has no float weights to run: name the checkpoint it was made from with --against";
        return Err(Error::Usage(problem.into()));
    }
    for opened in [&checkpoint, &float] {
        let config = ModelConfig::from_json(&opened.config_file, &opened.config)?;
        let longest = config.max_positions;
        if args.prompt + args.steps > longest {
            let problem = format!(
                "--prompt {} and --steps {}: the model's context is {longest} tokens",
                args.prompt, args.steps
            );
            return Err(Error::Config(problem));
        }
    }
    // Both sides then read their files from memory: a disk would favour the second.
    read_once(&checkpoint)?;
    read_once(&float)?;
    let against = args.against.as_ref().unwrap_or(&args.reference);
    let threads = config::threads(args.threads);
    tracing::info!("running in int8");
    let int8 = side(args, &args.reference, Format::Int8, threads)?;
    tracing::info!("running in f32");
    let f32 = side(args, against, Format::F32, threads)?;
    tracing::info!("comparing what they predict");
    let compared = compare(args, threads)?;

    let record = SavingsRecord {
        format: SavingsRecord::format(),
        model: int8.model,
        reference: f32.model,
        created_by: format!("microgranite {}", build::VERSION_AND_ID),
        created: crate::http::app::unix_seconds(),
        kernel: int8.kernel,
        threads,
        prompt_tokens: args.prompt,
        steps: args.steps,
        int8: int8.measured,
        f32: f32.measured,
        tokens: compared.int8.tokens,
        kl_mean: compared.int8.kl_mean,
        kl_mean_se: compared.int8.kl_mean_se,
        same_top_token: compared.int8.same_top_token,
    };
    if let Some(file) = &args.out {
        record.write(file)?;
    }
    if let Some(packed) = checkpoint.packed() {
        let file = packed.quantization_file.with_file_name(SAVINGS);
        // If the folder cannot be written, as in a container, the measurement is still reported.
        if let Err(problem) = record.write(&file) {
            tracing::warn!("the result is not kept with the model: {problem}");
        }
    }
    let report = Report { record };
    if let Some(file) = &args.plot {
        let drawing = picture::draw(&report.record)?;
        std::fs::write(file, drawing).map_err(|e| Error::io(file, e))?;
    }
    print(&report, args.json)
}

/// Reads the files of a model from beginning to end.
fn read_once(checkpoint: &Checkpoint) -> Result<()> {
    let mut files: Vec<PathBuf> = match &checkpoint.contents {
        Contents::Packed(packed) => vec![packed.file().path().into()],
        Contents::Original(tensors) => {
            let names = tensors.names();
            names.iter().map(|name| tensors.file(name)).collect()
        }
    };
    files.sort();
    files.dedup();
    let mut buffer = vec![0; 1 << 20];
    for path in files {
        let mut file = std::fs::File::open(&path).map_err(|e| Error::io(&path, e))?;
        while file.read(&mut buffer).map_err(|e| Error::io(&path, e))? > 0 {}
    }
    Ok(())
}

/// This program with `arguments`, computing as this process would.
fn itself(arguments: &[&str], threads: usize) -> Result<Command> {
    let program = std::env::current_exe().map_err(|e| Error::Internal(e.to_string()))?;
    let mut command = Command::new(program);
    command
        .args(["--log", "warn", "--kernel", kernels::best().name()])
        .args(arguments)
        .args(["--threads", &threads.to_string()])
        // What the float side takes its threads from.
        .env("RAYON_NUM_THREADS", threads.to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    Ok(command)
}

/// The JSON that a process prints. If it fails, its last line and its exit code are passed on.
fn printed<T: serde::de::DeserializeOwned>(mut command: Command, what: &str) -> Result<T> {
    let output = command
        .output()
        .map_err(|e| Error::Internal(format!("{what}: {e}")))?;
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr);
        let last = log.lines().last().unwrap_or_default();
        let last = last.strip_prefix("error: ").unwrap_or(last);
        let problem = format!("{what} failed: {last} ({})", output.status);
        return Err(match output.status.code() {
            Some(64) => Error::Usage(problem),
            Some(69) => Error::Unavailable(problem),
            // Killed, as when there is too little memory for four bytes per weight.
            None | Some(78) => Error::Config(problem),
            Some(_) => Error::Internal(problem),
        });
    }
    let text = output.stdout;
    serde_json::from_slice(&text).map_err(|e| Error::Internal(format!("{what}: {e}")))
}

fn side(args: &Args, reference: &Reference, format: Format, threads: usize) -> Result<Printed> {
    let (name, what) = match format {
        Format::Int8 => ("int8", "the int8 side"),
        Format::F32 => ("f32", "the f32 side"),
    };
    let (reference, prompt) = (reference.to_string(), args.prompt.to_string());
    let (steps, command) = (args.steps.to_string(), side::COMMAND);
    let arguments = [
        command, &reference, name, "--prompt", &prompt, "--steps", &steps,
    ];
    printed(itself(&arguments, threads)?, what)
}

/// The divergence, as `eval` measures it.
fn compare(args: &Args, threads: usize) -> Result<EvaluationRecord> {
    let (reference, tokens) = (args.reference.to_string(), args.tokens.to_string());
    let mut arguments = vec!["eval", "--json", "--tokens", &tokens];
    let against = args.against.as_ref().map(Reference::to_string);
    if let Some(against) = &against {
        arguments.extend(["--against", against]);
    }
    arguments.push(&reference);
    printed(itself(&arguments, threads)?, "the comparison")
}
