//! What `eval` prints.

use std::fmt;

use serde::Serialize;

use crate::model::evaluate::Evaluation;
use crate::model::packed::EvaluationRecord;
use crate::model::weight_error::TensorError;

/// Tensors in the table; `--json` has all of them.
const WORST: usize = 10;

/// Everything that is printed.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// What a packed model keeps.
    #[serde(flatten)]
    pub found: EvaluationRecord,
    /// Every matrix, worst first.
    pub tensors: Vec<TensorError>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EvaluationRecord {
            reference,
            kernel,
            text,
            window,
            int8,
            q8_0,
        } = &self.found;
        writeln!(f, "model      {}, int8 on {kernel}", self.model)?;
        writeln!(f, "reference  {reference} in f32")?;
        writeln!(
            f,
            "text       {text}: {} predicted tokens in windows of {window}\n",
            int8.tokens
        )?;
        let (perplexity, kl, top, dp) = ("perplexity", "mean KL", "same top token", "RMS Δp");
        writeln!(
            f,
            "{:<6}{perplexity:>18}{kl:>22}{:>9}{top:>18}{dp:>16}",
            "", "max KL"
        )?;
        let (reference, error) = (int8.perplexity_reference, int8.perplexity_reference_se);
        writeln!(
            f,
            "{:<6}{:>18}",
            "f32",
            format!("{reference:.3} ± {error:.3}")
        )?;
        figures(f, "int8", int8)?;
        if let Some(q8_0) = q8_0 {
            figures(f, "Q8_0", q8_0)?;
        }
        let heading = match self.tensors.len() {
            all @ ..=WORST => format!("all {all} matrices"),
            all => format!("the worst {WORST} of {all} matrices (--json has all)"),
        };
        writeln!(
            f,
            "\n{heading:<52}{:>8}{:>16}{:>16}",
            "SQNR", "relative error", "largest error"
        )?;
        for error in self.tensors.iter().take(WORST) {
            let sqnr = error
                .sqnr_db
                .map_or("exact".into(), |db| format!("{db:.1} dB"));
            let relative = format!("{:.3} %", 100.0 * error.relative_error);
            let TensorError {
                tensor,
                largest_error,
                ..
            } = error;
            writeln!(
                f,
                "{tensor:<52}{sqnr:>8}{relative:>16}{largest_error:>16.2e}"
            )?;
        }
        Ok(())
    }
}

/// One line of the table.
fn figures(f: &mut fmt::Formatter<'_>, name: &str, found: &Evaluation) -> fmt::Result {
    let perplexity = format!("{:.3} ± {:.3}", found.perplexity, found.perplexity_se);
    let kl = format!("{:.5} ± {:.5}", found.kl_mean, found.kl_mean_se);
    let percent = |value: f64, error: f64| format!("{:.2} ± {:.2} %", 100.0 * value, 100.0 * error);
    let top = percent(found.same_top_token, found.same_top_token_se);
    let dp = percent(found.rms_dp, found.rms_dp_se);
    writeln!(
        f,
        "{name:<6}{perplexity:>18}{kl:>22}{:>9.4}{top:>18}{dp:>16}",
        found.kl_max
    )
}
