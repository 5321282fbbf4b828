//! The energy that the processors have used, where they say it: Intel's and AMD's RAPL, as Linux shows it.

use std::fs;
use std::path::{Path, PathBuf};

/// The energy counters of all processor packages.
pub struct Meter {
    counters: Vec<Counter>,
}

struct Counter {
    file: PathBuf,
    before: u64,
    /// Where it begins again at 0.
    range: u64,
}

impl Meter {
    /// Starts to measure; `None` where no counter can be read. On most systems only root may read them, and virtual
    /// machines have none.
    pub fn start() -> Option<Self> {
        Self::under(Path::new("/sys/class/powercap"))
    }

    fn under(folder: &Path) -> Option<Self> {
        let mut counters = Vec::new();
        for entry in fs::read_dir(folder).ok()?.flatten() {
            // `intel-rapl:0` is a package, `intel-rapl:0:1` a part of it that is already counted there.
            let name = entry.file_name();
            let package = name
                .to_str()
                .and_then(|name| name.strip_prefix("intel-rapl:"));
            if package.is_none_or(|package| package.contains(':')) {
                continue;
            }
            let file = entry.path().join("energy_uj");
            let before = number(&file)?;
            let range = number(&entry.path().join("max_energy_range_uj"))?;
            counters.push(Counter {
                file,
                before,
                range,
            });
        }
        (!counters.is_empty()).then_some(Self { counters })
    }

    /// Joules since the start. A counter may begin again once, after minutes.
    pub fn joules(&self) -> Option<f64> {
        let of = |counter: &Counter| {
            let now = number(&counter.file)?;
            let microjoules = match now.checked_sub(counter.before) {
                Some(used) => used,
                None => counter
                    .range
                    .checked_sub(counter.before)?
                    .checked_add(now)?,
            };
            Some(microjoules as f64 / 1e6)
        };
        self.counters.iter().map(of).sum()
    }
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, package: &str, energy: u64) {
        let folder = root.join(package);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("energy_uj"), format!("{energy}\n")).unwrap();
        fs::write(folder.join("max_energy_range_uj"), "1000000000\n").unwrap();
    }

    #[test]
    fn packages_are_added_up_and_their_parts_are_not() {
        let root = tempfile::tempdir().unwrap();
        let set = |energies: [u64; 3]| {
            let names = ["intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"];
            names
                .iter()
                .zip(energies)
                .for_each(|(name, energy)| write(root.path(), name, energy));
        };
        set([1_000_000, 999_000_000, 5]);
        let meter = Meter::under(root.path()).unwrap();
        // The second begins again at a thousand joules.
        set([4_000_000, 1_500_000, 900_000_000]);
        assert_eq!(meter.joules(), Some(5.5));
    }

    #[test]
    fn without_counters_there_is_no_figure() {
        let root = tempfile::tempdir().unwrap();
        assert!(Meter::under(root.path()).is_none());
        assert!(Meter::under(&root.path().join("none")).is_none());
    }
}
