//! `microgranite eval`: measures what eight bits cost in accuracy.

mod plot;
mod report;
mod verdict;

use std::path::{Path, PathBuf};

use crate::config;
use crate::error::{Error, Result};
use crate::model::packed::{EvaluationRecord, Quantization};
use crate::model::{self, Granite, ModelConfig, PAGE_TOKENS, packed};
use crate::sources::{self, Checkpoint, Reference};
use crate::study::evaluate::{Comparison, WINDOW_TOKENS};
use crate::study::reference::{Arithmetic, Reference as FloatModel};
use crate::study::weight_error;
use crate::study::weight_error::TensorError;
use crate::text::samples;

use super::progress::Progress;
use super::{print, texts};
use report::{Evaluated, Report};

/// Measure what int8 costs in accuracy: perplexity, divergence from the float model, and the error of every tensor.
///
/// The result for a packed model is recorded in its quantization.json, where inspect and the server find it. The float
/// model is kept in memory completely, four bytes per weight, and runs at the speed of f32 arithmetic.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The models to evaluate, each a folder, a .gguf file, hf:OWNER/NAME[@REVISION][:LABEL], ollama:NAME[:TAG],
    /// oci://HOST/REPOSITORY[:TAG], or demo.
    ///
    /// Several models are compared with --against in one pass over the text, so the float model runs only once.
    ///
    /// For a hub repository, its safetensors are used, or else the GGUF file that is best for int8: Q8_0, then floats,
    /// then the most bits. :LABEL selects another, as in hf:OWNER/NAME:Q4_K_M. The address of a model's page on
    /// huggingface.co works too.
    #[arg(value_name = "REF", required = true)]
    references: Vec<Reference>,
    /// The reference: the model whose float weights, in f32, REF is compared with. [default: REF itself]
    #[arg(long, value_name = "REF")]
    against: Option<Reference>,
    /// The text to evaluate on: plain text, or a .jsonl file of strings, or of objects with a "text", with the
    /// "messages" of a conversation, or with a "prompt" and a "completion". [default: the beginning of Alice in
    /// Wonderland]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Stop after this many tokens of the text. Fewer take less time, and have larger standard errors.
    #[arg(long, value_name = "N", value_parser = config::tokens)]
    tokens: Option<usize>,
    /// Also evaluate the weights in llama.cpp's Q8_0, on the same text. Takes the memory of a second float model.
    #[arg(long)]
    q8_0: bool,
    /// Draw the error of each layer's weights to this file.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Compute threads. [default: the number of cores, or the cgroup's CPU quota]
    #[arg(long, env = "MICROGRANITE_THREADS", value_name = "N", value_parser = config::thread_count)]
    threads: Option<usize>,
    /// Print JSON instead of a table: an object for one model, for several a list of such objects under "models".
    #[arg(long)]
    json: bool,
}

/// Evaluates the models and prints the report on standard output.
///
/// # Errors
/// The errors of reading the text and loading the models, and [`Error::Usage`] for models that cannot be compared.
pub fn run(args: &Args, sources: &sources::Settings) -> Result<()> {
    if let Some(file) = &args.plot {
        check_is_svg(file)?;
    }
    let report = evaluate(args, &Opened::new(args, sources)?, sources)?;
    if let Some(file) = &args.plot {
        let drawing = plot::draw(&report.models)?;
        std::fs::write(file, drawing).map_err(|e| Error::io(file, e))?;
    }
    print(&report, args.json)
}

/// Refuses a name that another kind of picture has.
///
/// # Errors
/// [`Error::Usage`].
pub fn check_is_svg(file: &Path) -> Result<()> {
    if file
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("svg"))
    {
        return Ok(());
    }
    let problem = "--plot draws SVG: name a file that ends in .svg";
    Err(Error::Usage(problem.into()))
}

/// The models, and the reference for all of them.
struct Opened {
    checkpoints: Vec<Checkpoint>,
    against: Option<Checkpoint>,
}

impl Opened {
    fn new(args: &Args, sources: &sources::Settings) -> Result<Self> {
        let open = |reference| sources::open(reference, sources);
        let checkpoints: Vec<Checkpoint> =
            args.references.iter().map(open).collect::<Result<_>>()?;
        let against = args.against.as_ref().map(open).transpose()?;
        let refused = |problem: String| Err(Error::Usage(problem));
        if against
            .as_ref()
            .is_some_and(|truth| truth.packed().is_some())
        {
            let models = args.references.iter().chain(&args.against);
            let models: Vec<String> = models.map(Reference::to_string).collect();
            return refused(format!(
                "--against: that model is packed, so it has no float weights; to compare packed models, name the checkpoint they were made from: eval {} --against CHECKPOINT",
                models.join(" ")
            ));
        }
        if against.is_none() && checkpoints.len() > 1 {
            let problem = "several models are compared with one: name the checkpoint they were made from with --against";
            return refused(problem.into());
        }
        if against.is_none() && checkpoints[0].packed().is_some() {
            let problem = "a packed model has no float weights to compare with: name the checkpoint it was made from with --against";
            return refused(problem.into());
        }
        Ok(Self {
            checkpoints,
            against,
        })
    }

    /// The checkpoint whose float weights are the reference.
    fn truth(&self) -> &Checkpoint {
        self.against.as_ref().unwrap_or(&self.checkpoints[0])
    }

    /// The ids of each document; all models must give the same.
    fn ids(&self, documents: &[String], most: usize) -> Result<Vec<Vec<u32>>> {
        let ids = self.truth().token_ids(documents, most)?;
        for checkpoint in &self.checkpoints {
            if checkpoint.token_ids(documents, most)? != ids {
                let name = &checkpoint.name;
                let problem = format!(
                    "--against: the tokenizers of that model and of {name} cut the text into other tokens"
                );
                return Err(Error::Usage(problem));
            }
        }
        Ok(ids)
    }
}

fn evaluate(args: &Args, opened: &Opened, sources: &sources::Settings) -> Result<Report> {
    let truth = opened.truth();
    let (text, documents) = match &args.text {
        Some(file) => (file.display().to_string(), texts::read(file, truth)?),
        None => (
            "the beginning of Alice in Wonderland".into(),
            vec![samples::ALICE.into()],
        ),
    };
    let config = ModelConfig::from_json(&truth.config_file, &truth.config)?;
    let ids = opened.ids(&documents, args.tokens.unwrap_or(usize::MAX))?;
    let window = WINDOW_TOKENS.min(config.max_positions);
    let windows: Vec<&[u32]> = (ids.iter().flat_map(|ids| ids.chunks(window)))
        .filter(|ids| ids.len() > 1)
        .collect();
    if windows.is_empty() {
        let problem = "the text is too short to evaluate on: it needs at least two tokens";
        return Err(Error::Usage(problem.into()));
    }
    let threads = config::threads(args.threads);
    let load = |checkpoint| Candidate::load(checkpoint, truth, window, threads, sources);
    let candidates = opened.checkpoints.iter().map(load);
    let mut candidates = candidates.collect::<Result<Vec<_>>>()?;
    let weights = truth.tensors()?;
    let float = FloatModel::load(&config, weights, Arithmetic::F32)?;
    let q8_0 = args
        .q8_0
        .then(|| FloatModel::load(&config, weights, Arithmetic::Q8_0));
    let q8_0 = q8_0.transpose()?;

    let mut progress = Progress::new("evaluating", sources.progress_bar);
    let mut of_q8_0 = Comparison::default();
    for (done, ids) in (1..).zip(&windows) {
        let expected = float.logits(ids)?;
        for candidate in &mut candidates {
            let logits = candidate.int8.logits(ids);
            candidate.compared.add_window(ids, &expected, logits)?;
        }
        if let Some(q8_0) = &q8_0 {
            of_q8_0.add_window(ids, &expected, &q8_0.logits(ids)?)?;
        }
        progress.show(done, windows.len() as u64);
    }
    progress.finish();
    let q8_0 = q8_0.map(|_| of_q8_0.finish()).transpose()?;
    let found = |candidate: &mut Candidate<'_>| {
        Ok(EvaluationRecord {
            reference: truth.name.clone(),
            kernel: candidate.int8.kernel().name().to_owned(),
            text: text.clone(),
            window,
            int8: std::mem::take(&mut candidate.compared).finish()?,
            q8_0: q8_0.clone(),
        })
    };
    let mut models = Vec::new();
    for (mut candidate, reference) in candidates.into_iter().zip(&args.references) {
        let found = found(&mut candidate)?;
        models.push(candidate.finish(found, reference)?);
    }
    Ok(Report { models })
}

/// A model that is being evaluated.
struct Candidate<'a> {
    checkpoint: &'a Checkpoint,
    int8: Granite,
    tensors: Vec<TensorError>,
    compared: Comparison,
}

impl<'a> Candidate<'a> {
    /// Quantizes or maps the model, and measures the rounding error of its weights.
    fn load(
        checkpoint: &'a Checkpoint,
        truth: &Checkpoint,
        window: usize,
        threads: usize,
        sources: &sources::Settings,
    ) -> Result<Self> {
        let config = ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config)?;
        let of_truth = ModelConfig::from_json(&truth.config_file, &truth.config)?;
        if of_truth.vocab_size != config.vocab_size || config.max_positions < window {
            let problem = format!(
                "--against: that model and {} differ in vocabulary or context",
                checkpoint.name
            );
            return Err(Error::Usage(problem));
        }
        let mut progress = Progress::new("quantizing", sources.progress_bar);
        let settings = model::Settings {
            threads,
            slots: 1,
            snapshots: 0,
            kv_bytes: window.div_ceil(PAGE_TOKENS) as u64 * model::footprint(&config).kv_page,
            context: None,
            weights: model::Placement::default(),
        };
        let mut int8 = model::load(checkpoint, &settings, &mut |done, total| {
            progress.show(done, total);
        })?;
        progress.finish();
        // The rounding error is measured against the weights that were rounded.
        let floats = match checkpoint.packed() {
            Some(_) => truth,
            None => checkpoint,
        };
        let mut progress = Progress::new("comparing weights", sources.progress_bar);
        let floats = floats.tensors()?;
        let tensors = weight_error::measure(&mut int8, floats, &mut |done, total| {
            progress.show(done, total);
        })?;
        progress.finish();
        Ok(Self {
            checkpoint,
            int8,
            tensors,
            compared: Comparison::default(),
        })
    }

    /// Records the result in a packed model's folder.
    fn finish(self, found: EvaluationRecord, reference: &Reference) -> Result<Evaluated> {
        let mut compensated = false;
        if let Some(packed) = self.checkpoint.packed() {
            compensated = Quantization::of(packed)?.compensated;
            // If the folder cannot be written, as in a container, the measurement is still reported.
            if let Err(problem) = packed::record(packed, &found) {
                tracing::warn!("the result is not kept with the model: {problem}");
            }
        }
        Ok(Evaluated {
            model: self.checkpoint.name.clone(),
            found,
            tensors: self.tensors,
            compensated,
            reference: reference.to_string(),
        })
    }
}
