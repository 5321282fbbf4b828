//! What this machine is and what it lacks, as far as the system says it.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::config;

/// One memory channel of DDR5-4800 delivers this at most, in bytes per second.
const CHANNEL: f64 = 38.4e9;

/// The machine, without anything measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// The processor's name, if the system reports it.
    pub cpu: Option<String>,
    /// Processors that are switched on.
    pub cpus: usize,
    /// Processors that this process may use, by quota and affinity.
    pub usable_cpus: usize,
    /// Processors that share a core with others, such as two hyper-threads, count as one.
    pub cores: usize,
    /// Memory nodes, such as sockets.
    pub numa_nodes: usize,
    /// Whether the system gives huge pages to a program that asks for them.
    pub huge_pages: bool,
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        Self::under(Path::new("/"), config::available_threads())
    }

    /// The machine whose files are under `root`.
    fn under(root: &Path, usable_cpus: usize) -> Self {
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let names = |folder: &str, prefix: &str| -> Vec<String> {
            let entries = fs::read_dir(root.join(folder)).into_iter().flatten();
            let names = entries.flatten().map(|entry| entry.file_name());
            let numbered = |name: &String| {
                let number = name.strip_prefix(prefix).unwrap_or_default();
                !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
            };
            names
                .filter_map(|name| name.into_string().ok())
                .filter(numbered)
                .collect()
        };
        let cpuinfo = read("proc/cpuinfo");
        let cpu = cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == "model name").then(|| value.trim().to_owned())
        });
        let stat = read("proc/stat");
        let cpus = stat.lines().filter(|line| line.starts_with("cpu")).count();
        let folder = "sys/devices/system/cpu";
        let mut siblings: Vec<String> = names(folder, "cpu")
            .into_iter()
            .map(|name| read(&format!("{folder}/{name}/topology/thread_siblings_list")))
            .filter(|list| !list.is_empty())
            .collect();
        siblings.sort();
        siblings.dedup();
        // The first line of the file is the sum of the others.
        let cpus = cpus.saturating_sub(1).max(usable_cpus);
        Self {
            cpu,
            cpus,
            usable_cpus,
            cores: if siblings.is_empty() {
                cpus
            } else {
                siblings.len()
            },
            numa_nodes: names("sys/devices/system/node", "node").len().max(1),
            huge_pages: {
                let enabled = read("sys/kernel/mm/transparent_hugepage/enabled");
                !enabled.is_empty() && !enabled.contains("[never]")
            },
        }
    }

    /// What is missing here and what that costs, a sentence each. `kernel` is the instruction set in use, `threads` the
    /// number of compute threads, and `read` the bytes that they read from memory in a second.
    pub fn notes(&self, kernel: &str, threads: usize, read: f64) -> Vec<String> {
        let mut notes = Vec::new();
        match kernel {
            "avx2" | "avx512-bw" => notes.push(
                "no VNNI: with it, prompts and many streams at once would be about three times as fast; one stream \
                 hardly gains"
                    .to_owned(),
            ),
            "neon-dotprod" => notes.push(
                "no i8mm: with it, prompts and many streams at once would be up to twice as fast".to_owned(),
            ),
            "neon" => notes.push(
                "no dot product: with it, prompts and many streams at once would be about four times as fast"
                    .to_owned(),
            ),
            "scalar" => notes.push(
                "no vector instructions that there is a kernel for: everything is many times slower than it could be"
                    .to_owned(),
            ),
            _ => {}
        }
        if self.usable_cpus < self.cpus {
            notes.push(format!(
                "a quota or an affinity gives this process {} of {} CPUs: everything below is for these",
                self.usable_cpus, self.cpus
            ));
        }
        if self.cores < self.cpus && threads > self.cores {
            notes.push(format!(
                "{threads} threads on {} cores: two threads of a core share its arithmetic; try --threads {}",
                self.cores, self.cores
            ));
        }
        if self.numa_nodes > 1 {
            notes.push(format!(
                "{} memory nodes: run one server on each (numactl --cpunodebind=N --membind=N), since reading from \
                 another node is slower",
                self.numa_nodes
            ));
        }
        if !self.huge_pages {
            notes.push(
                "no huge pages: one stream is up to a fifth slower; \
                 echo madvise > /sys/kernel/mm/transparent_hugepage/enabled, as root, allows them"
                    .to_owned(),
            );
        }
        if read < CHANNEL {
            notes.push(format!(
                "memory reads {:.0} GB/s, which one channel can deliver: every token reads all weights, so more channels \
                 or faster memory speed up a single stream in proportion",
                read / 1e9
            ));
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)], usable: usize) -> Machine {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Machine::under(root.path(), usable)
    }

    const STAT: (&str, &str) = (
        "proc/stat",
        "cpu 9 9\ncpu0 1 1\ncpu1 1 1\ncpu2 1 1\ncpu3 1 1\nintr 5\n",
    );

    #[test]
    fn a_server_is_read_from_its_files() {
        let folder = "sys/devices/system/cpu";
        let siblings = |cpu: usize| format!("{folder}/cpu{cpu}/topology/thread_siblings_list");
        let (one, two, three, four) = (siblings(0), siblings(1), siblings(2), siblings(3));
        let machine = machine(
            &[
                STAT,
                (
                    "proc/cpuinfo",
                    "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n",
                ),
                (&one, "0,2\n"),
                (&two, "1,3\n"),
                (&three, "0,2\n"),
                (&four, "1,3\n"),
                ("sys/devices/system/cpu/cpufreq/policy0/x", ""),
                ("sys/devices/system/node/node0/cpulist", "0,2"),
                ("sys/devices/system/node/node1/cpulist", "1,3"),
                (
                    "sys/kernel/mm/transparent_hugepage/enabled",
                    "always madvise [never]\n",
                ),
            ],
            3,
        );
        let expected = Machine {
            cpu: Some("Some CPU @ 2 GHz".into()),
            cpus: 4,
            usable_cpus: 3,
            cores: 2,
            numa_nodes: 2,
            huge_pages: false,
        };
        assert_eq!(machine, expected);
        let notes = machine.notes("avx2", 3, 20e9);
        assert_eq!(notes.len(), 6, "{notes:#?}");
        for (note, begins) in notes.iter().zip([
            "no VNNI",
            "a quota or an affinity gives this process 3 of 4 CPUs",
            "3 threads on 2 cores",
            "2 memory nodes",
            "no huge pages",
            "memory reads 20 GB/s",
        ]) {
            assert!(note.starts_with(begins), "{note}");
        }
    }

    #[test]
    fn a_system_that_says_nothing_is_taken_for_a_plain_one() {
        let machine = machine(&[], 2);
        assert_eq!((machine.cpus, machine.cores, machine.numa_nodes), (2, 2, 1));
        assert_eq!(machine.cpu, None);
        let good = Machine {
            huge_pages: true,
            ..machine
        };
        assert!(good.notes("avx512-vnni", 2, 50e9).is_empty());
    }
}
