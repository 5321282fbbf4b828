//! `microgranite status`: what a running server is doing.

use std::fmt;
use std::io::{IsTerminal, Write, stdout};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::client::{self, Client, KeyArg};
use super::print;
use crate::config::{self, ByteSize};
use crate::error::{Error, Result};
use crate::http::status::{Phase, Status, Times};

/// The time in which the speed of a busy server is measured, unless `--watch` says another.
const MEASURED: Duration = Duration::from_secs(1);

/// Show what a running server is doing: load, latency, speed, and the memory that int8 saves.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The address of the server, or of its admin port. HOST:PORT and :PORT are enough.
    #[arg(value_name = "URL", value_parser = client::url, default_value = client::DEFAULT_URL)]
    url: String,

    /// Print JSON: what GET /status answers, and the speed if it was measured. With --watch, one line for each reading.
    #[arg(long)]
    json: bool,

    /// Read again every so many seconds, 1 to 3600, until Ctrl-C.
    #[arg(long, short, value_name = "SECS", num_args = 0..=1, default_missing_value = "2", value_parser = interval)]
    watch: Option<Duration>,

    #[command(flatten)]
    key: KeyArg,
}

fn interval(text: &str) -> std::result::Result<Duration, String> {
    let seconds = config::whole::<1, 3600>(text)?;
    Ok(Duration::from_secs(seconds as u64))
}

/// Prints the status on standard output.
///
/// # Errors
/// [`Error::Unavailable`] where no server answers, or another one; [`Error::Config`] where it wants a key.
pub fn run(args: Args) -> Result<()> {
    let client = Client::new(&args.url, args.key);
    let mut reading = Reading::first(&client)?;
    let Some(interval) = args.watch else {
        if reading.now.load.running > 0 {
            std::thread::sleep(MEASURED);
            reading = reading.next(&client)?;
        }
        return print(&reading, args.json);
    };
    let redraws = stdout().is_terminal() && !args.json;
    loop {
        show(&reading, args.json, redraws)?;
        std::thread::sleep(interval);
        loop {
            match reading.next(&client) {
                Ok(next) => {
                    reading = next;
                    break;
                }
                // It may be restarting.
                Err(Error::Unavailable(problem)) => {
                    tracing::warn!("{problem}");
                    std::thread::sleep(interval);
                }
                Err(other) => return Err(other),
            }
        }
    }
}

/// Prints one of several readings.
fn show(reading: &Reading<'_>, json: bool, redraws: bool) -> Result<()> {
    let text = match json {
        true => serde_json::to_string(reading).map_err(|e| Error::Internal(e.to_string()))?,
        false => reading.to_string(),
    };
    let start = if redraws { "\x1b[H\x1b[2J" } else { "" };
    let mut out = stdout().lock();
    let written = writeln!(out, "{start}{text}").and_then(|()| out.flush());
    written.map_err(|problem| Error::io(Path::new("standard output"), problem))
}

/// A status, and what happened since the one before.
#[derive(Serialize)]
struct Reading<'a> {
    #[serde(skip)]
    url: &'a str,
    #[serde(skip)]
    at: Instant,
    #[serde(flatten)]
    now: Status,
    speed: Option<Speed>,
    /// Times since the reading before, if there were any; otherwise since the start.
    #[serde(skip)]
    first_token: Times,
    #[serde(skip)]
    next_token: Times,
}

/// Tokens per second since the reading before.
#[derive(Debug, Clone, Copy, Serialize)]
struct Speed {
    seconds: f64,
    generated_tokens_per_second: f64,
    prompt_tokens_per_second: f64,
}

impl<'a> Reading<'a> {
    fn first(client: &'a Client) -> Result<Self> {
        let now: Status = client.get("/status")?;
        Ok(Self {
            url: client.base(),
            at: Instant::now(),
            speed: None,
            first_token: now.latency.first_token.clone(),
            next_token: now.latency.next_token.clone(),
            now,
        })
    }

    fn next(&self, client: &'a Client) -> Result<Self> {
        let next = Self::first(client)?;
        let (now, before) = (&next.now, &self.now);
        // A server that was restarted counts from zero again.
        if now.uptime_seconds < before.uptime_seconds {
            return Ok(next);
        }
        let seconds = (next.at - self.at).as_secs_f64();
        let each = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let (totals, earlier) = (&now.totals, &before.totals);
        let speed = Speed {
            seconds,
            generated_tokens_per_second: each(totals.generated_tokens, earlier.generated_tokens),
            prompt_tokens_per_second: each(totals.prompt_tokens, earlier.prompt_tokens),
        };
        let recent = |now: &Times, before: &Times| {
            let recent = now.since(before);
            if recent.count > 0 {
                recent
            } else {
                now.clone()
            }
        };
        let (latency, earlier) = (&now.latency, &before.latency);
        let first_token = recent(&latency.first_token, &earlier.first_token);
        let next_token = recent(&latency.next_token, &earlier.next_token);
        Ok(Self {
            speed: Some(speed),
            first_token,
            next_token,
            ..next
        })
    }
}

impl fmt::Display for Reading<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Status {
            version,
            state,
            uptime_seconds,
            model,
            load,
            memory,
            totals,
            ..
        } = &self.now;
        let state = match state {
            Phase::Loading => "loading the model",
            Phase::Ready => "ready",
            Phase::Draining => "shutting down",
            Phase::Stalled => "stalled: a step does not end",
            Phase::Damaged => "stopped: the weights are damaged",
            Phase::CanaryFailed => "stopped: the model does not answer as it did",
            Phase::Stopped => "stopped",
        };
        let name = model.as_ref().map_or("no model yet", |model| &model.name);
        writeln!(f, "{name} on {}: {state}", self.url)?;
        let uptime = lasting(*uptime_seconds);
        let Some(model) = model else {
            return write!(f, "  server       microgranite {version}, up {uptime}");
        };
        writeln!(
            f,
            "  model        {} M parameters, int8, context {}, {}",
            model.parameters / 1_000_000,
            model.context_length,
            model.instruction_set
        )?;
        writeln!(f, "  server       microgranite {version}, up {uptime}")?;
        let answered = totals.requests.get("ok").copied().unwrap_or(0);
        let others: Vec<String> = totals
            .requests
            .iter()
            .filter(|(outcome, count)| *outcome != "ok" && **count > 0)
            .map(|(outcome, count)| format!("{count} {outcome}"))
            .collect();
        let others = match others.is_empty() {
            true => String::new(),
            false => format!(" ({} besides)", others.join(", ")),
        };
        writeln!(
            f,
            "  load         {} of {} running, {} of {} waiting; {answered} answered{others}",
            load.running, load.batch_places, load.waiting, load.queue_places
        )?;
        match self.speed {
            Some(speed) => writeln!(
                f,
                "  speed        {:.1} tokens/s written, {:.1} read, in the last {:.0} s",
                speed.generated_tokens_per_second, speed.prompt_tokens_per_second, speed.seconds
            )?,
            None => writeln!(
                f,
                "  tokens       {} written, {} read ({} of them cached)",
                totals.generated_tokens, totals.prompt_tokens, totals.cached_prompt_tokens
            )?,
        }
        writeln!(
            f,
            "  latency      first token {}, next token {}",
            times(&self.first_token),
            times(&self.next_token)
        )?;
        let saved = |float: u64| ByteSize(float.saturating_sub(memory.weights));
        writeln!(
            f,
            "  weights      {}: {} less than f32, {} less than bf16",
            ByteSize(memory.weights),
            saved(memory.weights_f32),
            saved(memory.weights_bf16)
        )?;
        writeln!(
            f,
            "  resident     {}: {} its own, {} of mapped files",
            ByteSize(memory.resident_anon + memory.resident_file),
            ByteSize(memory.resident_anon),
            ByteSize(memory.resident_file)
        )?;
        write!(f, "  KV cache     {}", cache(memory.kv))?;
        if memory.states.reserved > 0 {
            write!(f, "\n  states       {}", cache(memory.states))?;
        }
        Ok(())
    }
}

fn cache(cache: crate::http::status::Cache) -> String {
    let (used, cached, reserved) = (cache.used, cache.cached, cache.reserved);
    let share = 100.0 * used as f64 / reserved.max(1) as f64;
    format!(
        "{share:.0} % of {} used, {} kept for later prompts",
        ByteSize(reserved),
        ByteSize(cached)
    )
}

/// The median and the 95th percentile.
fn times(times: &Times) -> String {
    match (times.quantile(0.5), times.quantile(0.95)) {
        (Some(half), Some(most)) => format!("{} (p95 {})", seconds(half), seconds(most)),
        _ => "–".to_owned(),
    }
}

fn seconds(seconds: f64) -> String {
    match seconds {
        1.0.. => format!("{seconds:.2} s"),
        _ => format!("{:.0} ms", seconds * 1000.0),
    }
}

/// A time in its two largest units.
fn lasting(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{} d {} h", hours / 24, hours % 24),
    }
}
