//! R19, R20, R21, R39: memory and processors as the start has planned them.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::arguments::Context;
use crate::client::Events;
use crate::control_group::ControlGroup;
use crate::findings::{Findings, Problem};
use crate::load::{self, Fate, closed_loop, open_loop, quantile, random, stream_body};
use crate::machine;
use crate::models;
use crate::overload::{self, Capacity, FLAGS};
use crate::server::{Launch, Server};

const NO_GROUP: &str = "no control group can be made here: it needs root and /sys/fs/cgroup";
/// Too little for any server.
const TINY: u64 = 48 << 20;

/// The bytes that a server says it needs when it may have only a few.
fn needs(log: &str) -> Option<f64> {
    let (_, rest) = log.split_once("needs ")?;
    let mut words = rest.split(' ');
    let number: f64 = words.next()?.parse().ok()?;
    let unit = match words.next()? {
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => 1.0,
    };
    Some(number * unit)
}

fn in_group(launch: Launch, group: &ControlGroup) -> Launch {
    let wrapper = group.wrapper();
    launch.under(&wrapper.each_ref().map(String::as_str))
}

/// R19: with what the server says it needs it lives under any load, and with less it does not start.
pub async fn memory_limit(context: Context) -> Result<Findings, Problem> {
    let model = models::tiny(8192)?;
    let group = match ControlGroup::new("memory") {
        Some(group) if group.limit_memory(TINY) => group,
        _ => return Ok(Findings::skipped(NO_GROUP)),
    };
    let mut found = Findings::default();
    let began = Instant::now();
    let mut refused = in_group(Launch::new(&context, &model.path, &FLAGS), &group).spawn()?;
    let status = refused.ended().await?;
    found.within("refusal", began.elapsed(), Duration::from_secs(1));
    found.always("exit code 78", usize::from(status.code() == Some(78)), 1);
    let log = refused.log();
    let needed = needs(&log).ok_or_else(|| format!("no size in the refusal: {log}"))?;
    drop(refused);
    found.shown("needs", needed / f64::from(1 << 20), "MiB");

    if !group.limit_memory((needed * 1.1) as u64) {
        return Err("the limit cannot be raised".into());
    }
    let mut server = in_group(Launch::new(&context, &model.path, &FLAGS), &group)
        .start()
        .await?;
    let capacity = Capacity::measure(&server, Duration::from_secs(3)).await;
    let time = context.of(Duration::from_secs(5), Duration::from_secs(120));
    let fates = open_loop(
        server.address,
        3.0 * capacity.per_second,
        time,
        overload::body,
    )
    .await;
    found.never("kills for want of memory", group.kills() as usize);
    found.always("alive", usize::from(server.is_alive()), 1);
    let broken = fates.into_iter().filter_map(overload::error).count();
    found.never("errors at 3×", broken);
    found.shown(
        "peak",
        machine::memory(server.id).peak as f64 / f64::from(1 << 20),
        "MiB",
    );
    drop(server);
    Ok(found)
}

/// R20: every place of the batch with the longest context, at the same time.
pub async fn memory_bound(context: Context) -> Result<Findings, Problem> {
    const PLACES: usize = 16;
    let tokens: usize = context.of(2048, 32768);
    let model = models::tiny(tokens)?;
    // The same flags for the plan and for the run.
    let kv = format!("{}MiB", context.of(128, 1024));
    let flags = ["--kv-cache", &*kv, "--prefix-cache", "off"];
    let planned = match ControlGroup::new("memory") {
        Some(group) if group.limit_memory(TINY) => {
            let mut refused =
                in_group(Launch::new(&context, &model.path, &flags), &group).spawn()?;
            refused.ended().await?;
            needs(&refused.log())
        }
        _ => None,
    };
    let server = Server::start(&context, &model.path, &flags).await?;
    let reserved = server
        .metrics()
        .await?
        .get("kv_cache_bytes{state=\"reserved\"}");
    let before = machine::memory(server.id);
    let mut random = random(8);
    // Half of each context is generated, so that all are running when the first one ends.
    let answers = (0..PLACES).map(|_| {
        let body = stream_body(&mut random, tokens / 2, tokens / 2);
        let address = server.address;
        async move { load::stream(address, &body).await }
    });
    let answers = futures_util::future::join_all(answers).await;
    let good = answers
        .iter()
        .filter(|answer| answer.as_ref().is_ok_and(Events::is_complete));
    let mut found = Findings::default();
    found.always(
        &format!("answers with contexts of {tokens}"),
        good.count(),
        PLACES,
    );
    let after = machine::memory(server.id);
    let grown = (after.peak.saturating_sub(before.all)) as f64;
    found.at_most(
        "growth",
        grown / f64::from(1 << 20),
        "MiB",
        1.1 * reserved / f64::from(1 << 20) + 32.0,
    );
    match planned {
        Some(planned) => found.at_most("peak", after.peak as f64 / planned, "of the plan", 1.0),
        None => found.note("the plan is not known without control groups"),
    }
    Ok(found)
}

/// R21: half of the processors means half as many threads, and no cliff.
pub async fn processors(context: Context) -> Result<Findings, Problem> {
    let cores = std::thread::available_parallelism()?.get();
    let model = models::tiny(4096)?;
    let time = context.of(Duration::from_secs(4), Duration::from_secs(20));
    let measure = async |launch: Launch| -> Result<(usize, Duration), Problem> {
        let server = launch.start().await?;
        let printed = server.printed();
        let threads = printed.split(", ").find_map(|part| {
            part.strip_suffix(" threads")
                .or(part.strip_suffix(" thread"))
        });
        let threads = threads
            .and_then(|count| count.parse().ok())
            .ok_or("no number of threads")?;
        let fates = closed_loop(server.address, 4, time, |random| {
            stream_body(random, 16, 64)
        })
        .await;
        let times = fates.iter().filter_map(|fate| match fate {
            Fate::Done { first, .. } => Some(*first),
            _ => None,
        });
        Ok((threads, quantile(times.collect(), 0.99)))
    };
    let mut found = Findings::default();
    let (_, all) = measure(Launch::new(&context, &model.path, &[])).await?;
    let (threads, one) =
        measure(Launch::new(&context, &model.path, &[]).under(&["taskset", "-c", "0"])).await?;
    found.always("one thread on one core", usize::from(threads == 1), 1);
    found.timed_at_most(
        "first token p99 on one core",
        one.as_secs_f64() / all.as_secs_f64(),
        "×",
        2.2,
    );
    match ControlGroup::new("cpu") {
        Some(group) if group.limit_processor(50 * cores as u32) => {
            let launch = in_group(Launch::new(&context, &model.path, &[]), &group);
            let (threads, half) = measure(launch).await?;
            let expected = (cores / 2).max(1);
            found.always(
                "threads by half a quota",
                usize::from(threads == expected),
                1,
            );
            found.timed_at_most(
                "first token p99 on half a quota",
                half.as_secs_f64() / all.as_secs_f64(),
                "×",
                2.2,
            );
        }
        _ => found.note(format!("quota not tried: {NO_GROUP}")),
    }
    Ok(found)
}

/// R39: the parts that the server counts its memory by explain what the kernel counts.
pub async fn explained(context: Context) -> Result<Findings, Problem> {
    const GAUGE: &str = "memory_unexplained_bytes";
    let mut found = Findings::default();
    let packed = models::packed(&context, 2048)?;
    let floats = models::tiny(2048)?;
    let gguf = models::of_tests("fixtures/granite-3-moe-tiny/granite-3-moe-tiny-Q8_0.gguf");
    let kinds: [(&str, &Path, &[&str]); 4] = [
        ("floats", &floats.path, &[]),
        ("GGUF", &gguf, &[]),
        ("packed, mapped", &packed.path, &["--weights", "mmap"]),
        ("packed, copied", &packed.path, &["--weights", "copy"]),
    ];
    for (kind, model, flags) in kinds {
        let server = Server::start(&context, model, flags).await?;
        for moment in ["at rest", "under load", "after it"] {
            let load = (moment == "under load").then(|| {
                let time = Duration::from_secs(3);
                tokio::spawn(closed_loop(server.address, 8, time, |random| {
                    stream_body(random, 64, 64)
                }))
            });
            sleep(Duration::from_secs(1)).await;
            let unexplained = server.metrics().await?.get(GAUGE);
            if unexplained.is_nan() {
                return Ok(Findings::skipped(format!("this build has no {GAUGE}")));
            }
            let share = unexplained.abs() / machine::memory(server.id).all as f64;
            found.at_most(&format!("{kind} {moment}"), 100.0 * share, "%", 5.0);
            if let Some(load) = load {
                load.await?;
            }
        }
    }
    Ok(found)
}
