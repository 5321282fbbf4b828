//! R6, R7, R8: more load than there is room for.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rand_pcg::Pcg64;
use serde_json::Value;
use tokio::time::sleep;

use crate::arguments::Context;
use crate::findings::{Findings, Problem};
use crate::load::{
    self, Fate, closed_loop, first_tokens, open_loop, quantile, random, rate, stream_body,
};
use crate::machine;
use crate::models;
use crate::server::Server;

/// Few places and a short queue, so that a moderate number of requests is an overload: the load must come from the same
/// two cores.
pub const FLAGS: [&str; 6] = [
    "--max-batch",
    "4",
    "--max-queue",
    "16",
    "--kv-cache",
    "64MiB",
];
const PLACES: u64 = 4;
const QUEUE: f64 = 16.0;
/// The most that memory may grow under overload: what the plan of the start has for 1,024 connections.
const GROWTH_MIB: f64 = 112.0;

/// Requests that keep a place for some time.
pub fn body(random: &mut Pcg64) -> Value {
    stream_body(random, 16, 200)
}

/// What a server can do: answers per second when every place is always taken, and the 99th percentile of the first token
/// of a client that is alone.
pub struct Capacity {
    pub per_second: f64,
    alone: Duration,
}

impl Capacity {
    pub async fn measure(server: &Server, time: Duration) -> Self {
        let mut alone = Vec::new();
        let mut random = random(5);
        for _ in 0..20 {
            let bytes = crate::client::post_request(crate::client::COMPLETIONS, &body(&mut random));
            if let Fate::Done { first, .. } = load::ask(server.address, bytes).await {
                alone.push(first);
            }
        }
        let began = Instant::now();
        let fates = closed_loop(server.address, 2 * PLACES, time, body).await;
        // The last answers end after the time, and are counted in it too.
        let per_second = rate(&fates, began, Instant::now());
        Self {
            per_second,
            alone: quantile(alone, 0.99),
        }
    }
}

pub async fn overload(context: Context) -> Result<Findings, Problem> {
    let model = models::tiny(8192)?;
    let server = Server::start(&context, &model.path, &FLAGS).await?;
    let time = context.of(Duration::from_secs(5), Duration::from_secs(120));
    let mut found = Findings::default();
    let (mut errors, mut longest_queue) = (Vec::new(), 0.0_f64);
    let mut most = 0;
    let mut at_rest = None;
    for factor in [1.5, 3.0, 10.0] {
        // Measured before each load, because the machine's speed changes.
        let capacity = Capacity::measure(&server, time.min(Duration::from_secs(10))).await;
        let at_rest = *at_rest.get_or_insert_with(|| machine::memory(server.id).anon);
        let is_over = Arc::new(AtomicBool::new(false));
        let watcher = {
            let (is_over, id, admin) = (Arc::clone(&is_over), server.id, server.admin);
            thread::spawn(move || {
                let (mut most, mut queue) = (0, 0.0_f64);
                while !is_over.load(Relaxed) {
                    most = most.max(machine::memory(id).anon);
                    queue = queue.max(waiting(admin).unwrap_or_default());
                    thread::sleep(Duration::from_millis(100));
                }
                (most, queue)
            })
        };
        let began = Instant::now();
        let fates = open_loop(server.address, factor * capacity.per_second, time, body).await;
        let (rate, first) = (
            // Not the first second, in which the places fill.
            rate(&fates, began + Duration::from_secs(1), began + time),
            quantile(first_tokens(&fates), 0.99),
        );
        let name = |what: &str| format!("{what} at {factor}×");
        let share = rate / capacity.per_second;
        found.timed_at_least(&name("goodput"), share, "of capacity", 0.95);
        let limit = Duration::from_secs_f64(QUEUE / capacity.per_second) + 2 * capacity.alone;
        found.within(&name("first token p99"), first, limit);
        let refusals: Vec<Duration> = fates.iter().filter_map(refusal).collect();
        if factor == 10.0 {
            found.at_least("refused at 10×", refusals.len() as f64, "", 1.0);
            found.within(
                "refusal p99 at 10×",
                quantile(refusals, 0.99),
                Duration::from_millis(20),
            );
            found.shown("capacity", capacity.per_second, "requests/s");
        }
        errors.extend(fates.into_iter().filter_map(error));
        is_over.store(true, Relaxed);
        let (memory, queue) = watcher.join().expect("it does not panic");
        longest_queue = longest_queue.max(queue);
        most = memory.max(most).max(at_rest);
        let grown = most.saturating_sub(at_rest) as f64 / f64::from(1 << 20);
        found.at_most(&name("memory grows"), grown, "MiB", GROWTH_MIB);
    }
    found.never("other statuses and broken connections", errors.len());
    found.shown(
        "at rest",
        at_rest.unwrap_or_default() as f64 / f64::from(1 << 20),
        "MiB",
    );
    found.at_most("longest queue", longest_queue, "", QUEUE);
    errors.dedup();
    for error in errors.iter().take(3) {
        found.note(error.clone());
    }
    Ok(found)
}

/// R8: kubelets and Prometheus are answered while the API has ten times the load that it can bear.
pub async fn probes(context: Context) -> Result<Findings, Problem> {
    let model = models::tiny(8192)?;
    let server = Server::start(&context, &model.path, &FLAGS).await?;
    let time = context.of(Duration::from_secs(5), Duration::from_secs(120));
    let capacity = Capacity::measure(&server, Duration::from_secs(3)).await;
    let probes = Probes::start(server.admin);
    let fates = open_loop(server.address, 10.0 * capacity.per_second, time, body).await;
    let mut found = Findings::default();
    probes.end(&mut found);
    found.at_least("requests beside", fates.len() as f64, "", 10.0);
    Ok(found)
}

pub fn refusal(fate: &Fate) -> Option<Duration> {
    match fate {
        Fate::Refused { took } => Some(*took),
        _ => None,
    }
}

pub fn error(fate: Fate) -> Option<String> {
    match fate {
        Fate::Status(status) => Some(format!("status {status}")),
        Fate::Broken(problem) => Some(problem),
        _ => None,
    }
}

/// A thread that asks the probes as a kubelet and Prometheus do, beside all else.
struct Probes {
    is_over: Arc<AtomicBool>,
    thread: thread::JoinHandle<(Vec<Duration>, usize)>,
}

impl Probes {
    fn start(admin: SocketAddr) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = thread::spawn(move || {
            let (mut times, mut failures) = (Vec::new(), 0);
            while !over.load(Relaxed) {
                for path in ["/livez", "/readyz", "/metrics"] {
                    let began = Instant::now();
                    let is_good = ask_blocking(admin, path)
                        .is_ok_and(|text| text.starts_with("HTTP/1.1 200"));
                    failures += usize::from(!is_good);
                    times.push(began.elapsed());
                }
                thread::sleep(Duration::from_millis(30));
            }
            (times, failures)
        });
        Self { is_over, thread }
    }

    fn end(self, found: &mut Findings) {
        self.is_over.store(true, Relaxed);
        let (times, failures) = self.thread.join().expect("it does not panic");
        found.never(
            &format!("probes of {} that failed or took a second", times.len()),
            failures,
        );
        found.within(
            "probe p99 at 10×",
            quantile(times, 0.99),
            Duration::from_millis(50),
        );
    }
}

/// A `GET` that fails after a second, on the calling thread.
pub fn ask_blocking(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let second = Duration::from_secs(1);
    let mut socket = std::net::TcpStream::connect_timeout(&address, second)?;
    socket.set_read_timeout(Some(second))?;
    socket.write_all(&crate::client::request("GET", path, "", b""))?;
    let mut text = Vec::new();
    socket.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn waiting(admin: SocketAddr) -> Option<f64> {
    let text = ask_blocking(admin, "/metrics").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("microgranite_requests_waiting "))?;
    line.parse().ok()
}

/// R7: clients with the longest prompts do not hold up those with short ones.
pub async fn head_of_line(context: Context) -> Result<Findings, Problem> {
    let model = models::tiny(8192)?;
    let server = Server::start(&context, &model.path, &["--prefix-cache", "off"]).await?;
    let time = context.of(Duration::from_secs(5), Duration::from_secs(30));
    let address = server.address;
    let short = |random: &mut Pcg64| stream_body(random, 16, 16);
    let idle = closed_loop(address, 8, time, short).await;
    let long = tokio::spawn(closed_loop(
        address,
        4,
        time + Duration::from_secs(2),
        |random| stream_body(random, 8000, 8),
    ));
    sleep(Duration::from_secs(1)).await;
    let beside = closed_loop(address, 8, time, short).await;
    let long = long.await?;
    let [idle, beside] = [&idle, &beside].map(|fates| quantile(first_tokens(fates), 0.99));
    let mut found = Findings::default();
    let ratio = beside.as_secs_f64() / idle.as_secs_f64();
    found.timed_at_most(
        "short first token p99 beside long prompts",
        ratio,
        "× idle",
        3.0,
    );
    found.shown("idle", idle.as_secs_f64() * 1e3, "ms");
    found.at_least(
        "long prompts answered",
        first_tokens(&long).len() as f64,
        "",
        4.0,
    );
    Ok(found)
}
