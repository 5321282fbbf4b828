//! `microgranite quantize`: converts a float checkpoint to a packed folder.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime;

use super::progress::Progress;
use super::signature::SignatureArgs;
use super::texts;
use crate::config::{self, ByteSize};
use crate::engine::canary::{self, MOST_PROMPT_TOKENS, Run, TEXTS, TOKENS};
use crate::engine::{self, Engine};
use crate::error::{Error, Result};
use crate::int8::rotation::Rotation;
use crate::int8::scheme::{Granularity, Mapping, Range, Scheme};
use crate::model::packed::{
    CANARY, CalibrationRecord, CanaryPrompt, CanaryRecord, Placement, Quantization,
};
use crate::model::{self, ModelConfig};
use crate::sources::hash::sha256_of;
use crate::sources::packed::WEIGHTS;
use crate::sources::staging::Staging;
use crate::sources::{self, Checkpoint, Reference};
use crate::study::calibrate::SEQUENCE_TOKENS;
use crate::study::pack::{self, Plan};
use crate::text::samples;

/// Pack a model at eight bits into a folder from which serve starts at once.
///
/// The folder appears only when it is complete: an interrupted run leaves nothing that looks like a model.
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

    /// The folder to create.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    /// Replace an existing packed model in that folder.
    #[arg(long)]
    force: bool,

    /// The mapping of weights to codes: symmetric around zero, or with a zero point per scale, which uses all 256 codes
    /// and costs an addition per group.
    #[arg(long, value_enum, default_value_t)]
    scheme: Mapping,

    /// Which weights share a scale: fewer are more exact. group costs 1.6 % more memory and a multiplication per group.
    #[arg(long, value_enum, default_value_t)]
    granularity: Granularity,

    /// Which weights the codes cover: absmax (all), percentile:P (P percent), or mse (those with the smallest error).
    /// Weights outside are clamped.
    #[arg(long, value_name = "RANGE", default_value_t)]
    range: Range,

    /// The rotation that spreads outliers before quantization. full is the most exact; none is the cheapest, and far
    /// less exact.
    #[arg(long, value_enum, default_value_t)]
    rotation: Rotation,

    /// Move outliers of the activations into the weights (SmoothQuant), with strength ALPHA from 0 to 1. This halves
    /// the loss of a model without rotation, and changes little with one.
    #[arg(long, value_name = "ALPHA", value_parser = share)]
    smooth: Option<f32>,

    /// How weights are rounded. [default: compensated, unless the checkpoint is already int8]
    #[arg(long, value_enum)]
    rounding: Option<Rounding>,

    /// The calibration text for compensation and smoothing: plain text, or a .jsonl file of strings, or of objects with
    /// a "text", with the "messages" of a conversation, or with a "prompt" and a "completion". [default: the beginning
    /// of As You Like It]
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,

    /// Number of tokens of the calibration text to use. More are more exact, and take longer.
    #[arg(long, value_name = "N", value_parser = config::tokens, default_value_t = 4096)]
    calibration_tokens: usize,

    #[command(flatten)]
    signature: SignatureArgs,

    /// Compute threads. [default: the number of cores, or the cgroup's CPU quota]
    #[arg(long, env = "MICROGRANITE_THREADS", value_name = "N", value_parser = config::thread_count)]
    threads: Option<usize>,
}

/// How a weight is rounded to a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Rounding {
    /// Rounding errors compensate each other on a calibration text (the idea of GPTQ). As fast to serve, with half the
    /// loss, but takes the time to run that text in f32.
    Compensated,
    /// To the nearest code. Takes seconds.
    Nearest,
}

/// Files that a Hugging Face folder may have beside its weights; they are copied unchanged.
const COMPANIONS: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// Packs the model and prints a summary of the loss.
///
/// # Errors
/// As [`sources::open`]; [`Error::Config`] when the folder exists already; [`Error::Io`] when it cannot be written.
pub fn run(args: Args, sources: &sources::Settings) -> Result<()> {
    let started = Instant::now();
    let checkpoint = sources::open(&args.reference, sources)?;
    if checkpoint.packed().is_some() {
        let problem = format!(
            "{} is packed already; name the checkpoint it was made from",
            args.reference
        );
        return Err(Error::Usage(problem));
    }
    args.signature.check(&checkpoint)?;
    let scheme = Scheme {
        mapping: args.scheme,
        granularity: args.granularity,
        range: args.range,
        rotation: args.rotation,
    };
    let tensors = checkpoint.tensors()?;
    let codes = tensors.quantization();
    let rounding = args.rounding.unwrap_or(match codes {
        Some(_) => Rounding::Nearest,
        None => Rounding::Compensated,
    });
    let compensate = rounding == Rounding::Compensated;
    let needs_text = args.smooth.is_some() || compensate;
    if let Some(made) = codes.filter(|_| needs_text) {
        let problem = format!(
            "--smooth, --rounding compensated: the weights are codes of {made}, which stay as they are"
        );
        return Err(Error::Usage(problem));
    }
    if args.calibrate.is_some() && !needs_text {
        let problem = "--calibrate: rounding to the nearest without --smooth needs no text";
        return Err(Error::Usage(problem.into()));
    }
    let mut plan = Plan {
        scheme,
        smooth: args.smooth,
        compensate,
        ..Plan::default()
    };
    if needs_text {
        let (sequences, calibration) = calibration(&args, &checkpoint)?;
        (plan.sequences, plan.calibration) = (sequences, Some(calibration));
    }
    let staging = Staging::new(&args.output, args.force)?;
    write_companions(&checkpoint, staging.path())?;
    let threads = config::threads(args.threads);
    let mut progress = Progress::new("quantizing", sources.progress_bar);
    let mut show = |done, total| progress.show(done, total);
    let quantization = pack::write(&checkpoint, &plan, threads, staging.path(), &mut show)?;
    progress.finish();
    record_canary(staging.path(), sources, threads)?;
    staging.publish()?;
    let summary = Summary {
        folder: &args.output,
        stored: tensors.stored_bytes(),
        quantization: &quantization,
        seconds: started.elapsed().as_secs_f64(),
    };
    let written = write!(std::io::stdout().lock(), "{summary}");
    written.map_err(|e| Error::io(Path::new("standard output"), e))
}

/// The ids of the calibration text, in sequences, and the record of that text.
fn calibration(args: &Args, checkpoint: &Checkpoint) -> Result<(Vec<Vec<u32>>, CalibrationRecord)> {
    let (name, documents) = match &args.calibrate {
        Some(file) => {
            let name = file.file_name().unwrap_or_default();
            (
                name.to_string_lossy().into_owned(),
                texts::read(file, checkpoint)?,
            )
        }
        None => (
            "the beginning of As You Like It".into(),
            vec![samples::AS_YOU_LIKE_IT.into()],
        ),
    };
    let ids = checkpoint.token_ids(&documents, args.calibration_tokens)?;
    let sequences = ids.iter().flat_map(|ids| ids.chunks(SEQUENCE_TOKENS));
    let sequences: Vec<Vec<u32>> = sequences.map(<[u32]>::to_vec).collect();
    let tokens = sequences.iter().map(Vec::len).sum();
    if tokens == 0 {
        return Err(Error::Usage("--calibrate: the text is empty".into()));
    }
    let record = CalibrationRecord {
        text: name,
        sha256: sha256_of(documents.concat().as_bytes()),
        tokens,
    };
    Ok((sequences, record))
}

/// Runs the packed model on the prompts of the canary, and writes down what it answers.
fn record_canary(folder: &Path, sources: &sources::Settings, threads: usize) -> Result<()> {
    let checkpoint = sources::open(&Reference::Folder(folder.to_owned()), sources)?;
    let texts = TEXTS.map(str::to_owned);
    let mut prompts = checkpoint.token_ids(&texts, usize::MAX)?;
    prompts
        .iter_mut()
        .for_each(|ids| ids.truncate(MOST_PROMPT_TOKENS));
    let config = ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config)?;
    let batch = engine::Settings {
        max_batch: 1,
        ..engine::Settings::default()
    };
    let settings = model::Settings {
        threads,
        // Prompt and answer fill no page.
        kv_bytes: model::footprint_of(&checkpoint, &config).kv_page,
        slots: batch.slots(),
        snapshots: 0,
        context: Some((MOST_PROMPT_TOKENS + TOKENS).min(config.max_positions)),
        weights: Placement::Mmap,
    };
    let granite = model::load(&checkpoint, &settings, &mut |_, _| {})?;
    let engine = Engine::start(Box::new(granite), batch, Arc::default())?;
    if !canary::fits(&engine, &prompts) {
        tracing::warn!("this model cannot run the prompts of the canary; {CANARY} is left out");
        return Ok(());
    }
    let runtime = runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|problem| Error::Internal(format!("no runtime: {problem}")))?;
    let Run::Complete(answers) = runtime.block_on(canary::run(&engine, &prompts)) else {
        let problem = "the packed model computes logits that are not finite";
        return Err(Error::bad_model(folder, "weights", problem));
    };
    let recorded = texts.into_iter().zip(prompts).zip(answers);
    let recorded = recorded.map(|((text, prompt), answer)| CanaryPrompt {
        text,
        prompt,
        answer: answer.sure_tokens().to_vec(),
    });
    let created_by: String = concat!("microgranite ", env!("CARGO_PKG_VERSION")).into();
    CanaryRecord::new(created_by, recorded.collect()).write(folder)
}

/// Reads a number from 0 to 1.
fn share(text: &str) -> std::result::Result<f32, String> {
    let number = text
        .parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share));
    number.ok_or_else(|| "write a number from 0 to 1".to_owned())
}

/// Writes configuration and tokenizer: a folder's files unchanged, a GGUF file's as translated.
fn write_companions(checkpoint: &Checkpoint, to: &Path) -> Result<()> {
    let source = &checkpoint.config_file;
    if source.file_name().is_some_and(|name| name == COMPANIONS[0]) {
        for name in COMPANIONS {
            let from = source.with_file_name(name);
            if from.exists() {
                let copied = File::open(&from).and_then(|mut file| {
                    std::io::copy(&mut file, &mut File::create(to.join(name))?)
                });
                copied.map_err(|e| Error::io(&from, e))?;
            }
        }
        return Ok(());
    }
    let put = |name: &str, text: &str| {
        let path = to.join(name);
        fs::write(&path, text).map_err(|e| Error::io(&path, e))
    };
    let config = format!("{:#}", checkpoint.config);
    put("config.json", &config)?;
    let tokenizer = checkpoint.tokenizer.to_string(false);
    put(
        "tokenizer.json",
        &tokenizer.map_err(|e| Error::Internal(e.to_string()))?,
    )?;
    let mut generation = checkpoint.generation.fields();
    let ids = serde_json::json!(checkpoint.eos_token_ids);
    generation.insert("eos_token_id".to_owned(), ids);
    let generation = serde_json::Value::Object(generation);
    put("generation_config.json", &format!("{generation:#}"))?;
    match &checkpoint.chat_template {
        Some(template) => put("chat_template.jinja", template),
        None => Ok(()),
    }
}

/// The summary on standard output.
struct Summary<'a> {
    folder: &'a Path,
    stored: u64,
    quantization: &'a Quantization,
    seconds: f64,
}

/// Explains why the ratios of compensated rounding look worse than those of rounding to the nearest although it is more
/// exact.
const COMPENSATED_NOTE: &str = "
Compensated rounding moves single weights farther than to the nearest code, so
that their errors cancel in sums on ordinary text. These ratios are therefore a
few dB lower, but the model's answers are closer to the original's; `eval`
measures how close.
";

/// How many matrices to list: the few with the largest loss.
const LISTED: usize = 5;

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Quantization {
            scheme, matrices, ..
        } = self.quantization;
        let weights = self.folder.join(WEIGHTS);
        let bytes = fs::metadata(&weights).map_or(0, |metadata| metadata.len());
        writeln!(f, "wrote         {}", self.folder.display())?;
        write!(f, "scheme        {scheme}")?;
        if let Some(alpha) = self.quantization.smooth {
            write!(f, ", smoothed by {alpha}")?;
        }
        let compensated = self.quantization.compensated;
        writeln!(f, "{}", if compensated { ", compensated" } else { "" })?;
        let (after, before) = (ByteSize(bytes), ByteSize(self.stored));
        writeln!(
            f,
            "weights       {after}, from {before}, in {:.1} s",
            self.seconds
        )?;
        let mut losses: Vec<(f64, &str)> = matrices
            .iter()
            .filter_map(|(name, record)| Some((record.sqnr_db?, name.as_str())))
            .collect();
        losses.sort_by(|a, b| a.0.total_cmp(&b.0));
        writeln!(
            f,
            "\nsignal to quantization noise, the lowest of {} matrices",
            matrices.len()
        )?;
        for (ratio, name) in losses.iter().take(LISTED) {
            writeln!(f, "{ratio:9.1} dB  {name}")?;
        }
        if compensated {
            f.write_str(COMPENSATED_NOTE)?;
        }
        Ok(())
    }
}
