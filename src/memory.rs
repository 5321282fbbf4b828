//! How much memory this process may use, how much it uses, and for what.

pub mod accounts;
mod heap;
pub mod maps;

use std::fs;
use std::path::Path;

pub use heap::{Heap, heap};

use crate::cgroup;

/// The memory this process may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// In bytes.
    pub bytes: u64,
    /// Where the limit comes from.
    pub source: &'static str,
}

/// Resident memory of this process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// Heap, stacks and private copies, which belong to this process alone.
    pub anon: u64,
    /// Pages of mapped files, which the system can drop and read again.
    pub file: u64,
    /// Shared memory.
    pub shmem: u64,
}

/// The smallest limit on this process: its cgroup's, of version 1 or 2, or the machine's memory. `None` if the system
/// does not report it (all but Linux).
pub fn limit() -> Option<Limit> {
    limit_under(Path::new("/"))
}

/// The resident memory of this process. `None` if the system does not report it (all but Linux).
pub fn resident() -> Option<Resident> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    Some(Resident {
        anon: kibibytes(&status, "RssAnon:")?,
        file: kibibytes(&status, "RssFile:")?,
        shmem: kibibytes(&status, "RssShmem:")?,
    })
}

/// The most memory of this process that has ever been resident, in bytes. `None` if the system does not report it.
pub fn peak() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    kibibytes(&status, "VmHWM:")
}

/// Resident bytes of this process, those that it shares with other processes divided by the number of these. `None` if
/// the system does not report it.
pub fn proportional() -> Option<u64> {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    kibibytes(&rollup, "Pss:")
}

/// Bytes that the cgroup of this process uses, with the page cache of the files that it read. `None` if there is no
/// cgroup that counts them.
pub fn cgroup_usage() -> Option<u64> {
    usage_under(Path::new("/"))
}

/// Bytes of this process's anonymous memory that are in huge pages. `None` if the system does not report it.
pub(crate) fn huge_pages() -> Option<u64> {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    kibibytes(&rollup, "AnonHugePages:")
}

/// The numbers in a file of the memory controller, the innermost group's first.
fn in_cgroups(root: &Path, names: [&str; 2]) -> Vec<(u64, &'static str)> {
    let files = cgroup::files(root, "memory", names).into_iter();
    // For no limit, version 2 writes `max`, and version 1 a number beyond any machine.
    files
        .filter_map(|found| Some((found.text.trim().parse().ok()?, found.source)))
        .collect()
}

/// [`limit`] on a system whose files are under `root`.
fn limit_under(root: &Path) -> Option<Limit> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let machine = Limit {
        bytes: kibibytes(&meminfo, "MemTotal:")?,
        source: "machine",
    };
    let of_cgroups = in_cgroups(root, ["memory.limit_in_bytes", "memory.max"]);
    let of_cgroups = of_cgroups.into_iter();
    let of_cgroups = of_cgroups.map(|(bytes, source)| Limit { bytes, source });
    of_cgroups.chain([machine]).min_by_key(|limit| limit.bytes)
}

/// [`cgroup_usage`] on a system whose files are under `root`.
fn usage_under(root: &Path) -> Option<u64> {
    let of_groups = in_cgroups(root, ["memory.usage_in_bytes", "memory.current"]);
    Some(of_groups.first()?.0)
}

/// The value of a line like `RssAnon:     1234 kB`, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(number * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system with 1 GiB of memory and `files`.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files
            .iter()
            .chain(&[("proc/meminfo", "MemTotal: 1048576 kB\n")])
        {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn limit_of(files: &[(&str, &str)]) -> (u64, &'static str) {
        let limit = limit_under(system(files).path()).unwrap();
        (limit.bytes, limit.source)
    }

    #[test]
    fn without_a_cgroup_limit_the_machine_is_the_limit() {
        assert_eq!(limit_of(&[]), (1 << 30, "machine"));
        assert_eq!(
            limit_of(&[
                ("proc/self/cgroup", "0::/user.slice\n"),
                ("sys/fs/cgroup/user.slice/memory.max", "max\n"),
            ]),
            (1 << 30, "machine")
        );
        assert_eq!(
            limit_of(&[
                ("proc/self/cgroup", "4:cpu:/\n3:memory:/\n"),
                (
                    "sys/fs/cgroup/memory/memory.limit_in_bytes",
                    "9223372036854771712\n"
                ),
            ]),
            (1 << 30, "machine")
        );
    }

    #[test]
    fn the_tightest_group_on_the_way_up_counts() {
        let files = [
            ("proc/self/cgroup", "0::/pod/container\n"),
            ("sys/fs/cgroup/pod/container/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/memory.max", "67108864\n"),
        ];
        assert_eq!(limit_of(&files), (64 << 20, "cgroup v2"));
    }

    #[test]
    fn a_path_of_the_host_falls_back_to_the_mount() {
        let files = [
            ("proc/self/cgroup", "5:cpuset,memory:/docker/0123\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "33554432\n"),
        ];
        assert_eq!(limit_of(&files), (32 << 20, "cgroup v1"));
    }

    #[test]
    fn the_innermost_group_says_what_is_used() {
        let first = [
            ("proc/self/cgroup", "4:memory:/pod/container\n0::/\n"),
            (
                "sys/fs/cgroup/memory/pod/container/memory.usage_in_bytes",
                "1000\n",
            ),
            ("sys/fs/cgroup/memory/pod/memory.usage_in_bytes", "3000\n"),
        ];
        assert_eq!(usage_under(system(&first).path()), Some(1000));
        let second = [
            ("proc/self/cgroup", "0::/somewhere/else\n"),
            ("sys/fs/cgroup/memory.current", "2000\n"),
        ];
        assert_eq!(usage_under(system(&second).path()), Some(2000));
        assert_eq!(usage_under(system(&[]).path()), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_running_process_holds_memory() {
        let resident = resident().unwrap();
        assert!(resident.anon > 0 && resident.file > 0, "{resident:?}");
        assert!(peak().unwrap() >= resident.anon, "{resident:?}");
        assert!(proportional().unwrap() > 0);
    }
}
