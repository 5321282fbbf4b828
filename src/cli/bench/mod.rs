//! `bench`: measures how fast this machine runs a model, and what share of its limits that is.

mod given;
mod limits;
mod machine;
mod measure;
mod quick;
mod report;
mod scaling;

use clap::Args as ClapArgs;

use super::progress::Progress;
use super::{WeightsArg, print};
use crate::config::{self, ByteSize};
use crate::error::{Error, Result};
use crate::memory::{self, accounts::Accounts};
use crate::model::{self, Forward, Granite, shapes};
use crate::sources::{self, Reference};
use machine::Machine;
use measure::Plan;
use scaling::{Rates, Scaling, Work};

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
    #[arg(long, conflicts_with_all = ["reference", "model", "shape", "prompt", "context", "batch", "runs", "steps"])]
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
    /// Lengths of the prompts to compute, in tokens. They are computed in steps of 128, as the server does.
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = config::tokens,
        default_value = "512",
        value_name = "TOKENS,TOKENS,…"
    )]
    prompt: Vec<usize>,
    /// Tokens of each stream before its decoding is timed. They are not computed: the KV cache is filled with numbers.
    ///
    /// [default: 64]
    #[arg(
        long,
        default_value_t = measure::STREAM_CONTEXT,
        hide_default_value = true,
        value_name = "TOKENS",
        value_parser = config::tokens
    )]
    context: usize,
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
    /// Compute threads, or several numbers of them: then each is measured, and the table says how much faster more
    /// threads are. [default: the number of cores, or the cgroup's CPU quota]
    #[arg(
        long,
        env = "MICROGRANITE_THREADS",
        value_delimiter = ',',
        value_parser = config::thread_count,
        value_name = "N,N,…"
    )]
    threads: Vec<usize>,
    #[command(flatten)]
    weights: WeightsArg,
    /// Print JSON instead of a table.
    ///
    /// "machine" describes the machine. Its "cpu" has the "share" of the time in which the threads ran, the
    /// "others_cpus" that other processes used meanwhile and the "stolen_cpus" that the host took, of "machine_cpus";
    /// it is null if the system does not report these. "undisturbed" is true if the results can be compared with
    /// others. With several numbers of threads there is "work" instead: for prefill and each number of streams the "rates"
    /// that every number of threads reached.
    #[arg(long)]
    json: bool,
}

/// Runs the command and prints to standard output.
///
/// # Errors
/// The errors of loading the model, and [`Error::Config`] for numbers that exceed the model's context or the memory.
pub fn run(args: &Args, sources: &sources::Settings) -> Result<()> {
    let threads = thread_counts(&args.threads);
    let most = threads.iter().max().expect("at least one").to_owned();
    if args.quick {
        let outlook = quick::run(most, sources.progress_bar)?;
        return print(&outlook, args.json);
    }
    let plan = Plan {
        prompts: args.prompt.clone(),
        context: args.context,
        batches: args.batch.clone(),
        runs: args.runs,
        steps: args.steps,
    };
    if let &[threads] = &threads[..] {
        return measured(args, &plan, threads, sources, |report| {
            print(report, args.json)
        })?;
    }
    let reports: Vec<(String, Rates)> = threads
        .iter()
        .map(|&threads| {
            measured(args, &plan, threads, sources, |report| {
                (report.name().to_owned(), report.rates())
            })
        })
        .collect::<Result<_>>()?;
    print(&scaling(&reports), args.json)
}

/// The numbers of threads to measure: none more than there are cores, and each once.
fn thread_counts(asked: &[usize]) -> Vec<usize> {
    let mut counts = Vec::new();
    for count in asked.iter().map(|&count| config::threads(Some(count))) {
        if !counts.contains(&count) {
            counts.push(count);
        }
    }
    if counts.is_empty() {
        counts.push(config::threads(None));
    }
    counts
}

/// Loads the model, measures it, and gives the report to `then`.
fn measured<T>(
    args: &Args,
    plan: &Plan,
    threads: usize,
    sources: &sources::Settings,
    then: impl FnOnce(&report::Report<'_>) -> T,
) -> Result<T> {
    let allocated = || memory::heap().map_or(0, |heap| heap.allocated);
    let runtime = allocated();
    let (name, mut model) = load(args, plan, threads, sources)?;
    let accounts = Accounts {
        runtime,
        ready: allocated(),
        ..model.accounts()
    };
    let progress = Progress::new("measuring", sources.progress_bar);
    let results = measure::run(&mut model, plan, progress)?;
    let held = accounts.reconcile(model.buffer_bytes() as u64);
    Ok(then(&report::Report::new(&name, &model, &results, held)))
}

/// The rates of every number of threads, by the kind of work.
fn scaling(reports: &[(String, Rates)]) -> Scaling {
    let (model, first) = &reports[0];
    let work = |index: usize| {
        let (kind, size, _) = first[index];
        let rates = reports.iter().map(|(_, rates)| rates[index].2);
        Work::new(kind, size, rates.collect())
    };
    Scaling {
        model: model.clone(),
        isa: crate::int8::kernels::best().name(),
        numa_nodes: Machine::this().numa_nodes,
        work: (0..first.len()).map(work).collect(),
    }
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
            "--prompt, --context: a sequence of {} tokens is longer than the model's context of {longest}",
            plan.longest()
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
