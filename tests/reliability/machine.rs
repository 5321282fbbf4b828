//! What `/proc` says about the machine and about processes.

use std::fs::read_to_string;
use std::path::Path;
use std::time::{Duration, Instant};

/// How much processor time was spent until a moment, and by whom.
pub struct Spent {
    at: Instant,
    everybody: Duration,
    own: Duration,
}

/// The unit of times in `/proc`: `USER_HZ`, which is 100 on every architecture that we run on.
const TICK: Duration = Duration::from_millis(10);

/// More load of other programs than this, in cores, is too much for judging times: with two cores, one for the server and
/// one for the client, every moment of it delays one of them.
pub const QUIET: f64 = 0.15;

impl Spent {
    pub fn now() -> Self {
        let stat = read_to_string("/proc/stat").unwrap_or_default();
        let first = stat.lines().next().unwrap_or_default();
        let ticks: Vec<u32> = numbers(first);
        // user nice system idle iowait irq softirq steal; the time that a hypervisor steals is missing too.
        let busy = ticks.iter().enumerate().take(8);
        let busy: u32 = busy
            .filter(|(at, _)| ![3, 4].contains(at))
            .map(|(_, ticks)| ticks)
            .sum();
        let own = read_to_string("/proc/self/stat").unwrap_or_default();
        // utime stime cutime cstime: this program and the servers that have ended.
        let own: u32 = after_name(&own).skip(11).take(4).sum();
        Self {
            at: Instant::now(),
            everybody: TICK * busy,
            own: TICK * own,
        }
    }

    /// The cores that other programs used since then, on average. Servers that still run count as others.
    pub fn others_since(&self) -> f64 {
        let now = Self::now();
        let all = now.everybody.saturating_sub(self.everybody);
        let own = now.own.saturating_sub(self.own);
        let elapsed = now.at.duration_since(self.at).max(TICK);
        all.saturating_sub(own).as_secs_f64() / elapsed.as_secs_f64()
    }
}

/// The numbers of `/proc/PID/stat` behind the name, which may contain spaces.
fn after_name(stat: &str) -> impl Iterator<Item = u32> + '_ {
    let (_, rest) = stat.rsplit_once(')').unwrap_or(("", stat));
    // The state, a letter, counts as zero, so that positions stay right.
    rest.split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
}

fn numbers(line: &str) -> Vec<u32> {
    let fields = line.split_whitespace().skip(1);
    fields.map(|field| field.parse().unwrap_or(0)).collect()
}

/// Memory of a process in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Resident anonymous memory.
    pub anon: u64,
    /// Everything that is resident.
    pub all: u64,
    /// The most that was ever resident.
    pub peak: u64,
}

pub fn memory(id: u32) -> Memory {
    let status = read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kilobytes.unwrap_or(0) << 10
    };
    Memory {
        anon: field("RssAnon:"),
        all: field("VmRSS:"),
        peak: field("VmHWM:"),
    }
}

/// Open file descriptors of a process.
pub fn descriptors(id: u32) -> usize {
    entries(&format!("/proc/{id}/fd"))
}

/// Threads of a process.
pub fn threads(id: u32) -> usize {
    entries(&format!("/proc/{id}/task"))
}

fn entries(folder: &str) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

/// Processor time that a process and its ended children have used.
pub fn processor_time(id: u32) -> Duration {
    let stat = read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    TICK * after_name(&stat).skip(11).take(4).sum::<u32>()
}

/// Whether a program is on the `PATH`, or in one of the folders for administrators.
pub fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::split_paths(&path);
    let others = ["/usr/sbin", "/sbin"].map(|folder| Path::new(folder).to_path_buf());
    own.chain(others)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}
