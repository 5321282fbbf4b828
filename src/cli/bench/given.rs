//! Measures how much processor time the benchmark got: on a busy machine, results say more about other processes.

use std::fmt;
use std::time::Instant;

use serde::Serialize;

/// The unit of processor times in `/proc`, which Linux fixes at a hundredth of a second for all programs (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// If the threads got less of the time than this, or other processes and the host took more than the rest, results
/// change by more than they vary from run to run, about two percent.
const UNDISTURBED: f64 = 0.95;

/// Processor time in seconds, from some point on.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Times {
    /// Of this process.
    own: f64,
    /// Of all processes on the machine.
    all: f64,
    /// Time the host gave to other virtual machines while this one wanted it.
    stolen: f64,
}

impl Times {
    /// `None` if the system does not report it.
    fn now() -> Option<Self> {
        let read = |file| std::fs::read_to_string(file).ok();
        Self::parse(&read("/proc/self/stat")?, &read("/proc/stat")?)
    }

    /// Parses `/proc/self/stat` and `/proc/stat`.
    fn parse(process: &str, machine: &str) -> Option<Self> {
        let ticks = |text: &str| text.parse::<f64>().ok();
        // The name, in parentheses, may contain spaces. The first field after it is the state, the 12th and 13th are
        // user and system time.
        let (_, after_name) = process.rsplit_once(") ")?;
        let own: Vec<&str> = after_name.split(' ').skip(11).take(2).collect();
        let [user, system] = own[..] else {
            return None;
        };
        let counts = machine.lines().next()?.strip_prefix("cpu ")?;
        let counts: Vec<f64> = counts.split_whitespace().filter_map(ticks).collect();
        let &[
            by_user,
            nice,
            by_system,
            _idle,
            _waiting,
            irq,
            soft_irq,
            stolen,
            ..,
        ] = &counts[..]
        else {
            return None;
        };
        let seconds = |ticks: f64| ticks / TICKS_PER_SECOND;
        Some(Self {
            own: seconds(ticks(user)? + ticks(system)?),
            all: seconds(by_user + nice + by_system + irq + soft_irq),
            stolen: seconds(stolen),
        })
    }
}

/// Measures processor time while something is timed.
#[derive(Debug, Default)]
pub struct Watch {
    began: Option<(Instant, Times)>,
    wall: f64,
    times: Times,
}

impl Watch {
    /// Measures the processor time during `work`.
    pub fn during<R>(&mut self, work: impl FnOnce() -> R) -> R {
        self.began = Times::now().map(|times| (Instant::now(), times));
        let result = work();
        if let (Some((began, before)), Some(after)) = (self.began.take(), Times::now()) {
            self.wall += began.elapsed().as_secs_f64();
            self.times.own += after.own - before.own;
            self.times.all += after.all - before.all;
            self.times.stolen += after.stolen - before.stolen;
        }
        result
    }

    /// The processor time that `threads` threads got, on a machine with `cpus` processors; `None` if nothing was
    /// measured.
    pub fn given(&self, threads: usize, cpus: usize) -> Option<Given> {
        // A shorter time has too few ticks to be meaningful.
        const LEAST_SECONDS: f64 = 0.1;
        let per_second = |seconds: f64| (seconds / self.wall).max(0.0);
        (self.wall >= LEAST_SECONDS).then(|| Given {
            share: (per_second(self.times.own) / threads as f64).min(1.0),
            others_cpus: per_second(self.times.all - self.times.own),
            stolen_cpus: per_second(self.times.stolen),
            machine_cpus: cpus,
        })
    }
}

/// The processor time that the threads got while they were timed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Given {
    /// The fraction of the time in which the threads ran: 1 on an idle machine.
    pub share: f64,
    /// Processors used by other processes meanwhile.
    pub others_cpus: f64,
    /// Processors that the host gave to other virtual machines.
    pub stolen_cpus: f64,
    /// Processors of the machine.
    pub machine_cpus: usize,
}

impl Given {
    /// Whether the results can be compared with those of an idle machine. Load on other cores matters too: they share
    /// the memory.
    pub fn is_undisturbed(&self) -> bool {
        let disturbing = (1.0 - UNDISTURBED) * self.machine_cpus as f64;
        self.share >= UNDISTURBED
            && self.others_cpus <= disturbing
            && self.stolen_cpus <= disturbing
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the threads ran {:.0} % of the time, others used {:.1} of {} CPUs, the host took {:.1}",
            100.0 * self.share,
            self.others_cpus,
            self.machine_cpus,
            self.stolen_cpus
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESS: &str =
        "77 (a (very) odd) name) R 1 1 1 0 -1 4194304 101 0 0 0 250 50 0 0 20 0 1 0 9 1 1";
    const MACHINE: &str = "cpu  1000 200 300 9000 50 10 20 70 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n";

    #[test]
    fn times_are_read_whatever_the_process_is_called() {
        let times = Times::parse(PROCESS, MACHINE).unwrap();
        let expected = Times {
            own: 3.0,
            all: 15.3,
            stolen: 0.7,
        };
        assert_eq!(times, expected);
        for (process, machine) in [("77", MACHINE), (PROCESS, ""), (PROCESS, "cpu  1 2")] {
            assert_eq!(Times::parse(process, machine), None);
        }
    }

    #[test]
    fn a_machine_that_was_shared_is_said_to_be() {
        let watch = |own, all, stolen| Watch {
            began: None,
            wall: 10.0,
            times: Times { own, all, stolen },
        };
        for (own, all, stolen, undisturbed) in [
            (19.9, 20.0, 0.0, true),
            (14.0, 20.0, 0.0, false),
            (19.9, 21.5, 0.0, false),
            (19.9, 20.0, 2.0, false),
        ] {
            let given = watch(own, all, stolen).given(2, 2).unwrap();
            assert_eq!(given.is_undisturbed(), undisturbed, "{given}");
        }
        let given = watch(14.0, 20.0, 1.0).given(2, 2).unwrap();
        assert_eq!(
            given.to_string(),
            "the threads ran 70 % of the time, others used 0.6 of 2 CPUs, the host took 0.1"
        );
        assert_eq!(Watch::default().given(2, 2), None);
    }

    #[test]
    fn work_is_counted() {
        let mut watch = Watch::default();
        let began = Instant::now();
        watch.during(|| while began.elapsed().as_millis() < 200 {});
        if Times::now().is_some() {
            assert!(watch.given(1, 1).unwrap().share > 0.0);
        }
    }
}
