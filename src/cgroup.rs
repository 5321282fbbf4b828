//! What the cgroup of this process says, of version 1 or 2: limits and usage of memory, and throttling of processor time.

use std::fs;
use std::path::Path;

/// A file of one cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its content.
    pub text: String,
    /// `cgroup v1` or `cgroup v2`.
    pub source: &'static str,
}

/// How often the quota of processor time was used up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Throttling {
    /// Periods in which the process wanted to run.
    pub periods: u64,
    /// Periods in which it had to wait for the next one.
    pub throttled: u64,
    /// How long its threads waited, in seconds.
    pub seconds: f64,
}

/// A file of `controller` in the group of this process and in every group around it, the innermost first; its name is
/// `[in version 1, in version 2]`. `root` is where the system's files are.
pub fn files(root: &Path, controller: &str, [first, second]: [&str; 2]) -> Vec<Found> {
    let cgroups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let of_group = |line: &str| {
        // `hierarchy:controllers:path`; version 2 is hierarchy 0 and names no controllers.
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let mount = root.join("sys/fs/cgroup");
        let (mount, file, source) = if controllers.is_empty() {
            (mount, second, "cgroup v2")
        } else if controllers.split(',').any(|name| name == controller) {
            (mount.join(controller), first, "cgroup v1")
        } else {
            return Vec::new();
        };
        // Every parent group limits this one too. In a container the path may be the host's and not exist here; then
        // the mount itself is this process's group.
        Path::new(path.trim_start_matches('/'))
            .ancestors()
            .filter_map(|group| {
                let text = fs::read_to_string(mount.join(group).join(file)).ok()?;
                Some(Found { text, source })
            })
            .collect()
    };
    cgroups.lines().flat_map(of_group).collect()
}

/// The throttling of this process's group. `None` if there is no group that counts it, or no quota.
pub fn throttling() -> Option<Throttling> {
    throttling_under(Path::new("/"))
}

fn throttling_under(root: &Path) -> Option<Throttling> {
    files(root, "cpu", ["cpu.stat", "cpu.stat"])
        .iter()
        .find_map(|found| {
            let value = |name: &str| {
                let words = found.text.lines().filter_map(|line| line.split_once(' '));
                let mut value = words
                    .filter(|(found, _)| *found == name)
                    .map(|found| found.1);
                value.next_back()?.trim().parse::<u64>().ok()
            };
            let nanoseconds = value("throttled_time");
            let microseconds = value("throttled_usec").map(|time| time.saturating_mul(1000));
            Some(Throttling {
                periods: value("nr_periods")?,
                throttled: value("nr_throttled")?,
                seconds: nanoseconds.or(microseconds)? as f64 / 1e9,
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn throttling_is_read_from_either_version() {
        let expected = Some(Throttling {
            periods: 100,
            throttled: 25,
            seconds: 1.5,
        });
        let first = [
            ("proc/self/cgroup", "5:cpuset:/\n3:cpu,cpuacct:/pod\n0::/\n"),
            (
                "sys/fs/cgroup/cpu/pod/cpu.stat",
                "nr_periods 100\nnr_throttled 25\nthrottled_time 1500000000\n",
            ),
        ];
        assert_eq!(throttling_under(system(&first).path()), expected);
        let second = [
            ("proc/self/cgroup", "0::/pod/container\n"),
            (
                "sys/fs/cgroup/pod/container/cpu.stat",
                "usage_usec 7\nnr_periods 100\nnr_throttled 25\nthrottled_usec 1500000\n",
            ),
        ];
        assert_eq!(throttling_under(system(&second).path()), expected);
    }

    #[test]
    fn without_a_quota_nothing_is_throttled_and_without_a_group_nothing_known() {
        let none = [
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/cpu.stat", "usage_usec 7\nuser_usec 3\n"),
        ];
        assert_eq!(throttling_under(system(&none).path()), None);
        assert_eq!(throttling_under(system(&[]).path()), None);
    }
}
