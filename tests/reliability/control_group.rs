//! Control groups: limits on memory and processors, in either version.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Limits of one kind for the processes in it. It is removed with this value, once they have ended.
pub struct ControlGroup {
    folder: PathBuf,
    is_first_version: bool,
}

impl ControlGroup {
    /// A new group for a controller (`memory`, `cpu`); `None` if this system lets us make none.
    pub fn new(controller: &str) -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let name = format!(
            "microgranite-reliability-{}-{controller}",
            std::process::id()
        );
        let is_first_version = root.join(controller).is_dir();
        let folder = match is_first_version {
            true => root.join(controller).join(name),
            false => root.join(name),
        };
        fs::create_dir(&folder).ok()?;
        Some(Self {
            folder,
            is_first_version,
        })
    }

    fn write(&self, file: &str, text: &str) -> bool {
        fs::write(self.folder.join(file), text).is_ok()
    }

    pub fn limit_memory(&self, bytes: u64) -> bool {
        let file = if self.is_first_version {
            "memory.limit_in_bytes"
        } else {
            "memory.max"
        };
        self.write(file, &bytes.to_string())
    }

    /// A share of one core in hundredths.
    pub fn limit_processor(&self, hundredths: u32) -> bool {
        let quota = 1000 * hundredths;
        match self.is_first_version {
            true => {
                self.write("cpu.cfs_period_us", "100000")
                    && self.write("cpu.cfs_quota_us", &quota.to_string())
            }
            false => self.write("cpu.max", &format!("{quota} 100000")),
        }
    }

    /// How often a process in it was killed for want of memory.
    pub fn kills(&self) -> u64 {
        let file = if self.is_first_version {
            "memory.oom_control"
        } else {
            "memory.events"
        };
        let text = fs::read_to_string(self.folder.join(file)).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|count| count.trim().parse().ok())
            .unwrap_or(0)
    }

    /// The words before a command that runs it in this group.
    pub fn wrapper(&self) -> [String; 4] {
        let script = format!(
            "echo $$ > {}/cgroup.procs && exec \"$@\"",
            self.folder.display()
        );
        ["sh".to_owned(), "-c".to_owned(), script, "sh".to_owned()]
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // The group is busy for a moment after its last process has ended.
        for _ in 0..50 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
