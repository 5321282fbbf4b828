//! The report of `eval`: results against the float model, a sentence that judges them, and the matrices with the
//! largest errors.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::json;

use super::verdict;
use crate::cli::figures::{percent, significant, with_error};
use crate::model::packed::{Evaluation, EvaluationRecord};
use crate::study::weight_error::TensorError;

/// Number of tensors in the table; `--json` has all of them.
const WORST: usize = 10;

/// Names of the models in a table; a table of more would not fit a terminal.
const LETTERS: &[u8; 26] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// The report.
#[derive(Debug)]
pub struct Report {
    /// At least one, all against the same reference on the same text.
    pub models: Vec<Evaluated>,
}

/// One model.
#[derive(Debug, Serialize)]
pub struct Evaluated {
    /// The model's name.
    pub model: String,
    /// The part that is recorded in a packed model.
    #[serde(flatten)]
    pub found: EvaluationRecord,
    /// Every matrix, worst first.
    pub tensors: Vec<TensorError>,
    /// Whether rounding errors were compensated when the model was packed.
    pub compensated: bool,
    /// Its reference on the command line.
    #[serde(skip)]
    pub reference: String,
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.models[..] {
            [one] => one.serialize(serializer),
            models => json!({ "models": models }).serialize(serializer),
        }
    }
}

impl Report {
    /// The name of a model in tables: a letter, if there are several.
    pub fn letter(index: usize) -> String {
        char::from(LETTERS[index % LETTERS.len()]).into()
    }

    fn row_name(&self, index: usize) -> String {
        match self.models.len() {
            1 => "int8".into(),
            _ => Self::letter(index),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EvaluationRecord {
            reference,
            text,
            window,
            int8,
            q8_0,
            ..
        } = &self.models[0].found;
        for (index, evaluated) in self.models.iter().enumerate() {
            let (model, kernel) = (&evaluated.model, &evaluated.found.kernel);
            let name = match self.models.len() {
                1 => "model".into(),
                _ => Self::letter(index),
            };
            writeln!(f, "{name:<11}{model}, int8 on {kernel}")?;
        }
        writeln!(f, "reference  {reference} in f32")?;
        let text = format!(
            "{text}: {} predicted tokens in windows of {window}",
            int8.tokens
        );
        writeln!(f, "text       {}\n", verdict::wrapped(&text, "           "))?;
        let (perplexity, kl, max) = ("perplexity", "mean KL", "max KL");
        let (top, dp) = ("same top token", "RMS Δp");
        writeln!(
            f,
            "{:<6}{perplexity:>16}{kl:>19}{max:>9}{top:>16}{dp:>14}",
            ""
        )?;
        let own = with_error(int8.perplexity_reference, int8.perplexity_reference_se, 5);
        writeln!(f, "{:<6}{own:>16}", "f32")?;
        for (index, evaluated) in self.models.iter().enumerate() {
            figures(f, &self.row_name(index), &evaluated.found.int8)?;
        }
        if let Some(q8_0) = q8_0 {
            figures(f, "Q8_0", q8_0)?;
        }
        writeln!(f)?;
        for (index, evaluated) in self.models.iter().enumerate() {
            let name = self.row_name(index);
            let found = &evaluated.found.int8;
            let sentence = verdict::of(found.kl_mean, found.kl_median);
            let sentence = verdict::wrapped(&sentence, "      ");
            writeln!(f, "{name:<6}{sentence}")?;
        }
        write!(f, "{}", verdict::task(&self.models[0].reference))?;
        self.matrices(f)
    }
}

impl Report {
    /// The matrices with the largest errors, and their error in each model.
    fn matrices(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [one] = &self.models[..] {
            let all = one.tensors.len();
            writeln!(
                f,
                "\n{:<42}{:>9}{:>14}{:>15}",
                heading(all),
                "SQNR",
                "error, RMS",
                "largest error"
            )?;
            for error in one.tensors.iter().take(WORST) {
                let db = |db| format!("{db:.1} dB");
                let sqnr = error.sqnr_db.map_or("exact".into(), db);
                let relative = format!("{:.3} %", 100.0 * error.relative_error);
                let largest = error.largest_error;
                let name = short(&error.tensor);
                writeln!(f, "{name:<42}{sqnr:>9}{relative:>14}{largest:>15.2e}")?;
            }
        } else {
            self.matrices_side_by_side(f)?;
        }
        if self.models.iter().any(|model| model.compensated) {
            let note = "Compensated rounding moves single weights farther than to the nearest code, so that their \
                        errors cancel in sums on ordinary text: its signal-to-noise ratio (SQNR) is a few dB lower though its \
                        divergence is no larger (half, on SmolLM2-135M). Judge it by the divergence.";
            writeln!(f, "\n{}", verdict::wrapped(note, ""))?;
        }
        Ok(())
    }

    /// Columns of relative errors, one for each model.
    fn matrices_side_by_side(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (index, model) in self.models.iter().enumerate() {
            for error in &model.tensors {
                let row = rows.entry(&error.tensor).or_default();
                row.resize(index, f64::NAN);
                row.push(error.relative_error);
            }
        }
        let most = |row: &[f64]| row.iter().copied().fold(0.0, f64::max);
        let all = rows.len();
        let mut rows: Vec<(&str, Vec<f64>)> = rows.into_iter().collect();
        rows.sort_by(|a, b| most(&b.1).total_cmp(&most(&a.1)));
        write!(f, "\n{:<42}", format!("{}, error", heading(all)))?;
        for index in 0..self.models.len() {
            write!(f, "{:>9}", Self::letter(index))?;
        }
        writeln!(f)?;
        for (tensor, errors) in rows.iter().take(WORST) {
            write!(f, "{:<42}", short(tensor))?;
            for error in errors {
                write!(f, "{:>9}", format!("{:.3} %", 100.0 * error))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn heading(all: usize) -> String {
    match all {
        all @ ..=WORST => format!("all {all} matrices"),
        all => format!("the worst {WORST} of {all} (--json has all)"),
    }
}

/// A matrix's name without what all have in common: a table with `block_sparse_moe.output_linear` fits 80 columns only so.
fn short(tensor: &str) -> &str {
    tensor
        .trim_start_matches("model.")
        .trim_end_matches(".weight")
}

/// Writes one line of the table.
fn figures(f: &mut fmt::Formatter<'_>, name: &str, found: &Evaluation) -> fmt::Result {
    let perplexity = with_error(found.perplexity, found.perplexity_se, 5);
    let kl = with_error(found.kl_mean, found.kl_mean_se, 3);
    let max = significant(found.kl_max, 3);
    let top = percent(found.same_top_token, found.same_top_token_se);
    let dp = percent(found.rms_dp, found.rms_dp_se);
    writeln!(
        f,
        "{name:<6}{perplexity:>16}{kl:>19}{max:>9}{top:>16}{dp:>14}"
    )
}
