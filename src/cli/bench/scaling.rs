//! The same measurements with several numbers of threads: how much faster more threads are.

use std::fmt;

use serde::Serialize;

/// What each number of threads reached.
#[derive(Debug, Serialize)]
pub struct Scaling {
    /// The model's name.
    pub model: String,
    /// The instruction set.
    pub isa: &'static str,
    /// Memory nodes of the machine, such as sockets.
    pub numa_nodes: usize,
    /// Prompts of one length first, then each number of streams.
    pub work: Vec<Work>,
}

/// One kind of work with every number of threads.
#[derive(Debug, Serialize)]
pub struct Work {
    /// `prefill` or `decode`.
    pub kind: &'static str,
    /// Tokens of the prompt, or streams.
    pub size: usize,
    /// In the order in which the numbers were given.
    pub rates: Vec<Rate>,
}

/// What one number of threads reached: for each kind of work its name, its size and the rate.
pub type Rates = Vec<(&'static str, usize, Rate)>;

/// One kind of work with one number of threads.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Rate {
    /// Compute threads.
    pub threads: usize,
    /// Tokens per second.
    pub tok_s: f64,
    /// Of what these threads read from memory, or computed, at most.
    pub share_of_limit: f64,
    /// The gain over the first number of threads, as a share of what as many times the threads would give at best. Set by
    /// [`Work::new`].
    pub efficiency: f64,
    /// Whether other programs left these threads their time, if the system reports it.
    pub undisturbed: Option<bool>,
}

impl Work {
    /// Computes the efficiencies of `rates`.
    pub fn new(kind: &'static str, size: usize, mut rates: Vec<Rate>) -> Self {
        if let Some(&first) = rates.first() {
            for rate in &mut rates {
                let best = first.tok_s * rate.threads as f64 / first.threads as f64;
                rate.efficiency = rate.tok_s / best;
            }
        }
        Self { kind, size, rates }
    }
}

impl fmt::Display for Scaling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "model      {}, {}", self.model, self.isa)?;
        let rates = || self.work.iter().flat_map(|work| &work.rates);
        if rates().any(|rate| rate.undisturbed == Some(false)) {
            writeln!(
                f,
                "warning    the machine was busy: these figures cannot be compared with others; run it again alone"
            )?;
        }
        if self.numa_nodes > 1 {
            writeln!(
                f,
                "warning    {} memory nodes: measure one (numactl --cpunodebind=0 --membind=0), and run one server on each",
                self.numa_nodes
            )?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "                 threads    tokens/s   share of the limit   efficiency"
        )?;
        for work in &self.work {
            for rate in &work.rates {
                writeln!(
                    f,
                    "{:<8}{:>6} {:>9} {:>11.1} {:>18.0} % {:>12.2}",
                    work.kind,
                    work.size,
                    rate.threads,
                    rate.tok_s,
                    100.0 * rate.share_of_limit,
                    rate.efficiency
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(threads: usize, tok_s: f64) -> Rate {
        Rate {
            threads,
            tok_s,
            share_of_limit: 0.8,
            efficiency: 0.0,
            undisturbed: Some(true),
        }
    }

    #[test]
    fn the_efficiency_is_the_speedup_for_each_thread_that_was_added() {
        let efficiencies = |rates: &[(usize, f64)]| -> Vec<f64> {
            let rates = rates.iter().map(|&(threads, tok_s)| rate(threads, tok_s));
            let work = Work::new("prefill", 512, rates.collect());
            work.rates.iter().map(|rate| rate.efficiency).collect()
        };
        assert_eq!(
            efficiencies(&[(1, 100.0), (2, 200.0), (4, 300.0)]),
            [1.0, 1.0, 0.75]
        );
        assert_eq!(efficiencies(&[(4, 100.0), (8, 150.0)]), [1.0, 0.75]);
        assert!(efficiencies(&[]).is_empty());
    }

    #[test]
    fn the_table_has_a_line_for_each_number_of_threads_and_warns_of_memory_nodes() {
        let work = Work::new("decode", 8, vec![rate(1, 8.4), rate(16, 45.7)]);
        let mut scaling = Scaling {
            model: "granite".to_owned(),
            isa: "scalar",
            numa_nodes: 1,
            work: vec![work],
        };
        let text = scaling.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(lines[3]), "decode 8 1 8.4 80 % 1.00");
        assert_eq!(words(lines[4]), "decode 8 16 45.7 80 % 0.34");
        assert!(!text.contains("warning"), "{text}");
        scaling.numa_nodes = 2;
        assert!(scaling.to_string().contains("2 memory nodes"));
        scaling.work[0].rates[1].undisturbed = Some(false);
        assert!(scaling.to_string().contains("the machine was busy"));
    }
}
