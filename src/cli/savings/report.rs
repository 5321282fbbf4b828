//! The report of `verify-savings` for people.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::cli::figures::{significant, with_error};
use crate::config::ByteSize;
use crate::model::packed::SavingsRecord;

/// The result.
pub struct Report {
    pub record: SavingsRecord,
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.record.serialize(serializer)
    }
}

fn bytes(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

fn percent(int8: u64, f32: u64) -> String {
    format!("{:.1} % of f32", 100.0 * int8 as f64 / f32.max(1) as f64)
}

fn times(int8: f64, f32: f64) -> String {
    format!("{} times f32", significant(int8 / f32, 3))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = &self.record;
        let (int8, f32) = (&all.int8, &all.f32);
        writeln!(f, "model      {}, int8 on {}", all.model, all.kernel)?;
        writeln!(
            f,
            "beside     {} in f32, the reference of eval",
            all.reference
        )?;
        writeln!(
            f,
            "run        {} threads; a prompt of {} tokens, then {} steps\n",
            all.threads, all.prompt_tokens, all.steps
        )?;
        let mut row = |name: &str, int8: String, f32: String, relation: String| {
            let line = format!("{name:<24}{int8:>14}{f32:>14}   {relation}");
            writeln!(f, "{}", line.trim_end())
        };
        let seconds = |value: f64| format!("{} s", significant(value, 3));
        let rate = |value: f64| significant(value, 4);
        row("", "int8".into(), "f32".into(), "int8 is".into())?;
        row(
            "resident",
            bytes(int8.resident_bytes),
            bytes(f32.resident_bytes),
            percent(int8.resident_bytes, f32.resident_bytes),
        )?;
        row(
            "  of it in mapped files",
            bytes(int8.resident_file_bytes),
            bytes(f32.resident_file_bytes),
            String::new(),
        )?;
        row(
            "peak",
            bytes(int8.peak_bytes),
            bytes(f32.peak_bytes),
            percent(int8.peak_bytes, f32.peak_bytes),
        )?;
        row(
            "ready after",
            seconds(int8.ready_seconds),
            seconds(f32.ready_seconds),
            times(int8.ready_seconds, f32.ready_seconds),
        )?;
        row(
            "processor time in all",
            seconds(int8.cpu_seconds),
            seconds(f32.cpu_seconds),
            times(int8.cpu_seconds, f32.cpu_seconds),
        )?;
        row(
            "prompt tokens/s",
            rate(int8.prefill_tokens_per_second),
            rate(f32.prefill_tokens_per_second),
            times(
                int8.prefill_tokens_per_second,
                f32.prefill_tokens_per_second,
            ),
        )?;
        row(
            "generated tokens/s",
            rate(int8.decode_tokens_per_second),
            rate(f32.decode_tokens_per_second),
            times(int8.decode_tokens_per_second, f32.decode_tokens_per_second),
        )?;
        match (int8.joules_per_token, f32.joules_per_token) {
            (Some(int8), Some(f32)) => row(
                "joules per token",
                significant(int8, 3),
                significant(f32, 3),
                times(int8, f32),
            )?,
            _ => row(
                "joules per token",
                "not readable".into(),
                "not readable".into(),
                String::new(),
            )?,
        }
        let kl = with_error(all.kl_mean, all.kl_mean_se, 3);
        writeln!(
            f,
            "\nloss       mean KL {kl} over {} tokens; the same top token for {:.2} %",
            all.tokens,
            100.0 * all.same_top_token
        )?;
        writeln!(
            f,
            "\nThe f32 side keeps no keys and values: its steps run one token alone, which is the least that a step takes."
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_say_what_int8_is() {
        let text = Report {
            record: SavingsRecord::example(),
        }
        .to_string();
        let rows: Vec<&str> = text.lines().skip(4).take(9).collect();
        let heading = rows[0];
        let ends = |name: &str| heading.find(name).unwrap() + name.len();
        assert!(rows[1].starts_with("resident"), "{text}");
        for row in &rows[1..] {
            let ends_of = [ends("int8"), ends(" f32")];
            for end in ends_of {
                assert!(!row[..end].ends_with(' '), "{row}");
                assert!(
                    row[end..].is_empty() || row[end..].starts_with(' '),
                    "{row}"
                );
            }
        }
        assert!(text.contains("25.0 % of f32"), "{text}");
        assert!(
            text.contains("joules per token          not readable  not readable"),
            "{text}"
        );
        assert!(
            text.lines().all(|line| line.chars().count() < 115),
            "{text}"
        );
    }
}
