//! `bench`: measures how fast this machine runs a model, and what share of its limits that is.

mod given;
mod limits;
mod machine;
mod measure;
mod quick;
mod report;

use clap::Args as ClapArgs;

use super::progress::Progress;
use super::{WeightsArg, print};
use crate::config::{self, ByteSize};
use crate::error::{Error, Result};
use crate::memory::{self, accounts::Accounts};
use crate::model::{self, Forward, Granite, shapes};
use crate::sources::{self, Reference};
use measure::Plan;

/// Measure prefill and decode on a model, or on a published shape filled with random weights.
///
/// Every result comes with its share of the machine's peak read or compute rate, measured in the same run between the
/// timed steps. The report also shows how much processor time the threads got; on a busy machine results cannot be
/// compared, and a warning says so.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Say in about ten seconds what this machine is, what published Granites would give on it, and what it lacks.
    ///
    /// Needs no download. A few layers of each shape are measured, and the whole is calculated from them.
    #[arg(long, conflicts_with_all = ["reference", "model", "shape", "prompt", "batch", "runs", "steps"])]
    quick: bool,
    /// The model to measure: a folder, a .gguf file, hf:OWNER/NAME[@REVISION][:LABEL], ollama:NAME[:TAG],
    /// oci://HOST/REPOSITORY[:TAG], or demo.
    ///
    /// For a hub repository, its safetensors are used, or else the GGUF file that is best for int8: Q8_0, then floats,
    /// then the most bits. :LABEL selects another, as in hf:OWNER/NAME:Q4_K_M. The address of a model's page on
    /// huggingface.co works too.
    #[arg(value_name = "REF", conflicts_with_all = ["shape", "model"])]
    reference: Option<Reference>,
    /// The same as REF.
    #[arg(long, value_name = "REF", conflicts_with = "shape")]
    model: Option<Reference>,
    /// A published model shape with random weights: needs no download, and is as fast as the real model.
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(shapes::names()))]
    shape: Option<String>,
    /// Prompt tokens in the prefill measurement.
    #[arg(long, default_value_t = 512, value_name = "TOKENS", value_parser = config::tokens)]
    prompt: usize,
    /// Numbers of streams to decode at once, 1 to 1024.
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = config::whole::<1, 1024>,
        default_value = "1,2,4,8,16,32",
        value_name = "N,N,…"
    )]
    batch: Vec<usize>,
    /// Runs of each measurement, 1 to 1000; the median is reported. More are steadier, and take longer.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = config::whole::<1, 1000>)]
    runs: usize,
    /// Decoding steps per run, 1 to 10000.
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = config::whole::<1, 10_000>)]
    steps: usize,
    /// Compute threads. [default: the number of cores, or the cgroup's CPU quota]
    #[arg(long, env = "MICROGRANITE_THREADS", value_name = "N", value_parser = config::thread_count)]
    threads: Option<usize>,
    #[command(flatten)]
    weights: WeightsArg,
    /// Print JSON instead of a table.
    ///
    /// "machine" describes the machine. Its "cpu" has the "share" of the time in which the threads ran, the
    /// "others_cpus" that other processes used meanwhile and the "stolen_cpus" that the host took, of "machine_cpus";
    /// it is null if the system does not report these. "undisturbed" is true if the results can be compared with
    /// others.
    #[arg(long)]
    json: bool,
}

/// Runs the command and prints to standard output.
///
/// # Errors
/// The errors of loading the model, and [`Error::Config`] for numbers that exceed the model's context or the memory.
pub fn run(args: &Args, sources: &sources::Settings) -> Result<()> {
    if args.quick {
        let outlook = quick::run(config::threads(args.threads), sources.progress_bar)?;
        return print(&outlook, args.json);
    }
    let plan = Plan {
        prompt: args.prompt,
        batches: args.batch.clone(),
        runs: args.runs,
        steps: args.steps,
    };
    let threads = config::threads(args.threads);
    let allocated = || memory::heap().map_or(0, |heap| heap.allocated);
    let runtime = allocated();
    let (name, mut model) = load(args, &plan, threads, sources)?;
    let accounts = Accounts {
        runtime,
        ready: allocated(),
        ..model.accounts()
    };
    let progress = Progress::new("measuring", sources.progress_bar);
    let results = measure::run(&mut model, &plan, progress)?;
    let held = accounts.reconcile(model.buffer_bytes() as u64);
    let report = report::Report::new(&name, &model, &results, held);
    print(&report, args.json)
}

fn load(
    args: &Args,
    plan: &Plan,
    threads: usize,
    sources: &sources::Settings,
) -> Result<(String, Granite)> {
    let settings = |config: &model::ModelConfig| model::Settings {
        threads,
        slots: plan.sequences(),
        snapshots: 0,
        kv_bytes: plan.pages() as u64 * model::footprint(config).kv_page,
        context: None,
        weights: args.weights.weights,
    };
    if let Some(shape) = &args.shape {
        let config = shapes::named(shape).expect("the argument parser knows the names");
        let footprint = model::footprint(&config);
        check_room(footprint, plan)?;
        let settings = settings(&config);
        return Ok((shape.clone(), model::random(config, &settings)?));
    }
    let named = args.reference.as_ref().or(args.model.as_ref());
    let reference = named.cloned().unwrap_or(Reference::Demo);
    let checkpoint = sources::open(&reference, sources)?;
    let config = model::ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config)?;
    let longest = config.max_positions;
    if plan.longest() > longest {
        return Err(Error::Config(format!(
            "--prompt {}: the model's context is {longest} tokens",
            plan.prompt
        )));
    }
    check_room(model::footprint_of(&checkpoint, &config), plan)?;
    let mut progress = Progress::new("loading", sources.progress_bar);
    let model = model::load(&checkpoint, &settings(&config), &mut |done, total| {
        progress.show(done, total);
    })?;
    progress.finish();
    Ok((checkpoint.name, model))
}

/// Refuses a model and plan that need more memory than this machine has, before filling it.
fn check_room(footprint: model::Footprint, plan: &Plan) -> Result<()> {
    let cache = (plan.pages() as u64).saturating_mul(footprint.kv_page);
    let needed = footprint.weights.saturating_add(cache);
    match memory::limit() {
        Some(limit) if needed > limit.bytes => Err(Error::Config(format!(
            "not enough memory: needs {} ({} weights, {} KV cache), limit {} ({})",
            ByteSize(needed),
            ByteSize(footprint.weights),
            ByteSize(cache),
            ByteSize(limit.bytes),
            limit.source,
        ))),
        _ => Ok(()),
    }
}
