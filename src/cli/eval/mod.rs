//! `microgranite eval`: what eight bits cost in accuracy.

mod plot;
mod report;

use std::path::PathBuf;

use crate::config;
use crate::error::{Error, Result};
use crate::model::evaluate::{Comparison, WINDOW_TOKENS};
use crate::model::packed::EvaluationRecord;
use crate::model::reference::{Arithmetic, Reference as FloatModel};
use crate::model::{self, ModelConfig, PAGE_TOKENS, packed, weight_error};
use crate::sources::{self, Checkpoint, Reference};
use crate::text::samples;

use super::print;
use super::progress::Progress;
use report::Report;

/// Measure what int8 costs in accuracy: perplexity, divergence from the float model, and the error of every tensor.
///
/// The result for a packed model is kept in its quantization.json: inspect and the server show it. The float model is held
/// in memory whole, four bytes for each weight, and runs at the speed of f32 arithmetic.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model to evaluate: a folder, a .gguf file, hf:OWNER/NAME[@REVISION][:LABEL], or demo
    ///
    /// Of a hub repository the safetensors are taken, or else the GGUF file that is best for int8: Q8_0, then floats, then the
    /// most bits. :LABEL takes another, as in hf:OWNER/NAME:Q4_K_M. A model's page on huggingface.co can be named as well.
    #[arg(value_name = "REF")]
    reference: Reference,
    /// The model whose weights, in f32, are the truth; the default is REF itself
    #[arg(long, value_name = "REF")]
    against: Option<Reference>,
    /// A text, or a .jsonl file of texts (strings, or objects with a "text"); the default is the beginning of Alice in Wonderland
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Stop after this many tokens of the text: fewer are sooner done, and have larger standard errors
    #[arg(long, value_name = "N", value_parser = config::tokens)]
    tokens: Option<usize>,
    /// Evaluate the weights in llama.cpp's Q8_0 as well, on the same text: takes the memory of a second float model
    #[arg(long)]
    q8_0: bool,
    /// Draw the error of each layer's weights
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Compute threads; the default is what the CPU quota and affinity allow
    #[arg(long, env = "MICROGRANITE_THREADS", value_name = "N", value_parser = config::thread_count)]
    threads: Option<usize>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Evaluates the model and prints the report on standard output.
///
/// # Errors
/// Whatever reading the text and loading the models give, and [`Error::Usage`] for two models that cannot be compared.
pub fn run(args: &Args, sources: &sources::Settings) -> Result<()> {
    let is_svg = |file: &PathBuf| {
        file.extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("svg"))
    };
    if args.plot.as_ref().is_some_and(|file| !is_svg(file)) {
        let problem = "--plot draws SVG: name a file that ends in .svg";
        return Err(Error::Usage(problem.into()));
    }
    let (text, documents) = match &args.text {
        Some(file) => (file.display().to_string(), samples::read(file)?),
        None => (
            "the beginning of Alice in Wonderland".into(),
            vec![samples::ALICE.into()],
        ),
    };
    let report = evaluate(args, sources, text, &documents)?;
    if let Some(file) = &args.plot {
        let drawing = plot::draw(&report.model, &report.tensors)?;
        std::fs::write(file, drawing).map_err(|e| Error::io(file, e))?;
    }
    print(&report, args.json)
}

fn evaluate(
    args: &Args,
    sources: &sources::Settings,
    text: String,
    documents: &[String],
) -> Result<Report> {
    let checkpoint = sources::open(&args.reference, sources)?;
    let against = args.against.as_ref();
    let against = against
        .map(|against| sources::open(against, sources))
        .transpose()?;
    if checkpoint.packed.is_some() && against.is_none() {
        let problem = "a packed model has no float weights to compare with: name the checkpoint it was made from with --against";
        return Err(Error::Usage(problem.into()));
    }
    let truth = against.as_ref().unwrap_or(&checkpoint);
    // What rounding did is seen against the weights that were rounded.
    let floats = if checkpoint.packed.is_some() {
        truth
    } else {
        &checkpoint
    };
    let config = ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config)?;
    let most = args.tokens.unwrap_or(usize::MAX);
    let ids = checkpoint.token_ids(documents, most)?;
    if truth.token_ids(documents, most)? != ids {
        let problem = "--against: that model's tokenizer cuts the text into other tokens";
        return Err(Error::Usage(problem.into()));
    }
    let window = WINDOW_TOKENS.min(config.max_positions);
    let windows: Vec<&[u32]> = (ids.iter().flat_map(|ids| ids.chunks(window)))
        .filter(|ids| ids.len() > 1)
        .collect();

    if windows.is_empty() {
        let problem = "the text is too short to evaluate on: it needs at least two tokens";
        return Err(Error::Usage(problem.into()));
    }
    let mut progress = Progress::new("quantizing", sources.progress_bar);
    let settings = model::Settings {
        threads: config::threads(args.threads),
        kv_bytes: window.div_ceil(PAGE_TOKENS) as u64 * model::footprint(&config).kv_page,
        context: None,
        weights: model::Placement::default(),
    };
    let mut int8 = model::load(&checkpoint, &settings, &mut |done, total| {
        progress.show(done, total);
    })?;
    progress.finish();
    let mut progress = Progress::new("comparing weights", sources.progress_bar);
    let tensors = weight_error::measure(&mut int8, floats.tensors.as_ref(), &mut |done, total| {
        progress.show(done, total)
    })?;
    progress.finish();
    let float = float_model(truth, &config, Arithmetic::F32)?;
    let q8_0 = args
        .q8_0
        .then(|| float_model(truth, &config, Arithmetic::Q8_0));
    let q8_0 = q8_0.transpose()?;

    let mut progress = Progress::new("evaluating", sources.progress_bar);
    let (mut of_int8, mut of_q8_0) = (Comparison::default(), Comparison::default());
    for (done, ids) in (1..).zip(&windows) {
        let expected = float.logits(ids)?;
        of_int8.add_window(ids, &expected, int8.logits(ids))?;
        if let Some(q8_0) = &q8_0 {
            of_q8_0.add_window(ids, &expected, &q8_0.logits(ids)?)?;
        }
        progress.show(done, windows.len() as u64);
    }
    progress.finish();
    let found = EvaluationRecord {
        reference: truth.name.clone(),
        kernel: int8.kernel().name().to_owned(),
        text,
        window,
        int8: of_int8.finish()?,
        q8_0: q8_0.map(|_| of_q8_0.finish()).transpose()?,
    };
    if let Some(packed) = &checkpoint.packed {
        // A folder that cannot be written, as in a container, is no reason to lose what was measured.
        if let Err(problem) = packed::record(packed, &found) {
            tracing::warn!("the result is not kept with the model: {problem}");
        }
    }
    Ok(Report {
        model: checkpoint.name.clone(),
        found,
        tensors,
    })
}

/// The float model of `checkpoint`, which must give logits over the same vocabulary as `config`.
fn float_model(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    arithmetic: Arithmetic,
) -> Result<FloatModel> {
    let own = ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config)?;
    if own.vocab_size != config.vocab_size
        || own.max_positions < config.max_positions.min(WINDOW_TOKENS)
    {
        let problem = "--against: that model has another vocabulary or a shorter context";
        return Err(Error::Usage(problem.into()));
    }
    FloatModel::load(&own, checkpoint.tensors.as_ref(), arithmetic)
}
