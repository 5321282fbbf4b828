//! What a check has measured, and whether it is within the limits.

use std::fmt::{self, Display};
use std::time::Duration;

use serde_json::{Value, json};

/// What ends a check early: a step that must work did not.
pub type Problem = Box<dyn std::error::Error + Send + Sync>;

/// The measurements of one check.
#[derive(Debug, Default)]
pub struct Findings {
    figures: Vec<Figure>,
    notes: Vec<String>,
    missing: Option<String>,
}

#[derive(Debug)]
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    limit: Limit,
    /// Times depend on how busy the machine is.
    is_time: bool,
}

#[derive(Debug, Clone, Copy)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
    Shown,
}

/// The verdict on one check.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    Passed,
    Failed,
    Skipped(String),
}

impl Findings {
    /// A check that cannot run here, and why.
    pub fn skipped(why: impl Into<String>) -> Self {
        Self {
            missing: Some(why.into()),
            ..Self::default()
        }
    }

    /// A count or size that may not exceed `limit`.
    pub fn at_most(&mut self, name: &str, value: f64, unit: &'static str, limit: f64) {
        self.add(name, value, unit, Limit::AtMost(limit), false);
    }

    /// A count that may not be less than `limit`.
    pub fn at_least(&mut self, name: &str, value: f64, unit: &'static str, limit: f64) {
        self.add(name, value, unit, Limit::AtLeast(limit), false);
    }

    /// Something that may never happen.
    pub fn never(&mut self, name: &str, count: usize) {
        self.at_most(name, count as f64, "", 0.0);
    }

    /// Something that must be so in all cases.
    pub fn always(&mut self, name: &str, count: usize, of: usize) {
        self.at_least(name, count as f64, "", of as f64);
    }

    /// A time that may not exceed `limit`, unless the machine is busy.
    pub fn within(&mut self, name: &str, value: Duration, limit: Duration) {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let limit = Limit::AtMost(milliseconds(limit));
        self.add(name, milliseconds(value), "ms", limit, true);
    }

    /// A ratio of times, or a rate, that may not exceed `limit`, unless the machine is busy.
    pub fn timed_at_most(&mut self, name: &str, value: f64, unit: &'static str, limit: f64) {
        self.add(name, value, unit, Limit::AtMost(limit), true);
    }

    /// A ratio of times, or a rate, that may not be less than `limit`, unless the machine is busy.
    pub fn timed_at_least(&mut self, name: &str, value: f64, unit: &'static str, limit: f64) {
        self.add(name, value, unit, Limit::AtLeast(limit), true);
    }

    /// A figure without a limit.
    pub fn shown(&mut self, name: &str, value: f64, unit: &'static str) {
        self.add(name, value, unit, Limit::Shown, false);
    }

    /// Something to read beside the figures.
    pub fn note(&mut self, text: impl Into<String>) {
        // A check has one line.
        self.notes.push(text.into().replace(['\n', '\r'], " "));
    }

    fn add(&mut self, name: &str, value: f64, unit: &'static str, limit: Limit, is_time: bool) {
        let name = name.to_owned();
        self.figures.push(Figure {
            name,
            value,
            unit,
            limit,
            is_time,
        });
    }

    /// Judges the figures. `others` is the load of other programs in cores, which excuses times, and nothing else; times
    /// may also be longer by the factor `slack`.
    pub fn verdict(&self, others: f64, quiet: f64, slack: f64) -> Verdict {
        if let Some(why) = &self.missing {
            return Verdict::Skipped(why.clone());
        }
        let broken = self.figures.iter().filter(|figure| match figure.is_time {
            true => !figure.is_kept_with(slack),
            false => !figure.is_kept(),
        });
        let broken: Vec<&Figure> = broken.collect();
        match broken {
            broken if broken.is_empty() => Verdict::Passed,
            broken if others > quiet && broken.iter().all(|figure| figure.is_time) => {
                let why = format!("no core to spare: other programs used {others:.1} of them");
                Verdict::Skipped(why)
            }
            _ => Verdict::Failed,
        }
    }

    pub fn json(&self) -> Value {
        let figures = self.figures.iter().map(|figure| {
            let limit = match figure.limit {
                Limit::AtMost(most) => json!({"at_most": most}),
                Limit::AtLeast(least) => json!({"at_least": least}),
                Limit::Shown => Value::Null,
            };
            json!({"name": figure.name, "value": figure.value, "unit": figure.unit, "limit": limit, "kept": figure.is_kept()})
        });
        json!({"figures": figures.collect::<Vec<_>>(), "notes": self.notes})
    }
}

impl Figure {
    fn is_kept(&self) -> bool {
        self.is_kept_with(1.0)
    }

    fn is_kept_with(&self, slack: f64) -> bool {
        match self.limit {
            Limit::AtMost(most) => self.value <= most * slack,
            Limit::AtLeast(least) => self.value >= least / slack,
            Limit::Shown => true,
        }
    }
}

impl Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = self.figures.iter().map(ToString::to_string);
        let all: Vec<String> = figures.chain(self.notes.iter().cloned()).collect();
        f.write_str(&all.join("; "))
    }
}

impl Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            "" | "×" => self.unit.to_owned(),
            unit => format!(" {unit}"),
        };
        write!(f, "{} {}{unit}", self.name, Shown(self.value))?;
        let broken = if self.is_kept() { "" } else { "!" };
        match self.limit {
            Limit::AtMost(most) => write!(f, " ({broken}≤ {})", Shown(most)),
            Limit::AtLeast(least) => write!(f, " ({broken}≥ {})", Shown(least)),
            Limit::Shown => Ok(()),
        }
    }
}

/// A number with three digits, or all before the point.
struct Shown(f64);

impl Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = match self.0.abs() {
            value if value.fract() == 0.0 || value >= 100.0 => 0,
            value if value >= 10.0 => 1,
            value if value >= 1.0 => 2,
            _ => 3,
        };
        write!(f, "{:.digits$}", self.0)
    }
}
