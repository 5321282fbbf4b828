//! Judges a divergence by comparison with other formats.

use crate::cli::figures::significant;

/// A bound on the mean divergence in nats, and what is known of models below it.
struct Mark {
    below: f64,
    meaning: &'static str,
}

/// Q8_0 loses 0.0014 on Llama 3 8B by the table in llama.cpp's documentation of `perplexity`, and 0.0039 to 0.0043 on
/// SmolLM2-135M as this program measures it; LLM.int8 of bitsandbytes loses 0.018 there (`compare/results.md`). Small
/// models lose more than large ones.
static MARKS: [Mark; 3] = [
    Mark {
        below: 0.005,
        meaning: "no more than llama.cpp's Q8_0 loses (0.0014 on Llama 3 8B, 0.0043 on SmolLM2-135M): answers rarely differ from the float model's.",
    },
    Mark {
        below: 0.02,
        meaning: "more than llama.cpp's Q8_0 loses (0.0014 on Llama 3 8B, 0.0043 on SmolLM2-135M) and about what bitsandbytes' LLM.int8 does at most (0.018 there): some answers differ, few are worse.",
    },
    Mark {
        below: f64::INFINITY,
        meaning: "more than bitsandbytes' LLM.int8 loses (0.018 on SmolLM2-135M): expect worse answers. The defaults of `microgranite quantize` lose least.",
    },
];

/// A sentence that judges a mean divergence, beside the median if that is known.
pub fn of(kl_mean: f64, kl_median: Option<f64>) -> String {
    let mark = MARKS.iter().find(|mark| kl_mean <= mark.below);
    let meaning = mark.map_or("not a number: something is broken.", |mark| mark.meaning);
    let mean = significant(kl_mean, 3);
    match kl_median {
        Some(median) => {
            let median = significant(median, 3);
            format!("a mean KL of {mean} (median {median}) is {meaning}")
        }
        None => format!("a mean KL of {mean} is {meaning}"),
    }
}

/// How to try the model on a task, which a divergence cannot replace.
pub fn task(reference: &str) -> String {
    format!(
        "To measure it on your task, use lm-evaluation-harness (pip: lm_eval[api]):\n\
         \x20   microgranite serve --model {reference} --served-model-name int8\n\
         \x20   lm_eval --model local-completions --tasks arc_easy --model_args \\\n\
         \x20       model=int8,base_url=http://127.0.0.1:8080/v1/completions,tokenizer_backend=remote\n"
    )
}

/// Breaks a text into lines of at most 80 characters, `indent` before all but the first.
pub fn wrapped(text: &str, indent: &str) -> String {
    const WIDTH: usize = 80;
    let (mut lines, mut width) = (String::new(), indent.chars().count());
    for word in text.split(' ') {
        let length = word.chars().count();
        if !lines.is_empty() {
            if width + 1 + length > WIDTH {
                lines += "\n";
                lines += indent;
                width = indent.chars().count();
            } else {
                lines += " ";
                width += 1;
            }
        }
        lines += word;
        width += length;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_divergence_is_judged_by_what_others_lose() {
        for (kl, words) in [
            (0.0, "no more than llama.cpp's Q8_0 loses"),
            (0.002, "no more than llama.cpp's Q8_0 loses"),
            (0.0178, "what bitsandbytes' LLM.int8 does"),
            (0.06, "more than bitsandbytes' LLM.int8 loses"),
            (f64::NAN, "not a number"),
        ] {
            let sentence = of(kl, None);
            assert!(sentence.contains(words), "{sentence}");
        }
    }

    #[test]
    fn the_median_stands_beside_the_mean() {
        let sentence = of(0.0187, Some(0.0091));
        assert!(
            sentence.starts_with("a mean KL of 0.0187 (median 0.00910) is more than"),
            "{sentence}"
        );
    }

    #[test]
    fn the_commands_for_a_task_name_the_model_that_is_served() {
        let text = task("hf:o/n");
        assert!(text.contains("serve --model hf:o/n --served-model-name int8"));
        assert!(text.contains("model=int8,base_url="), "{text}");
    }

    #[test]
    fn lines_hold_at_most_eighty_characters() {
        let text = wrapped(&of(0.01, None), "           ");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() > 2, "{text}");
        assert!(lines[1..].iter().all(|line| line.chars().count() <= 80));
        assert!(lines[0].chars().count() <= 80 - 11);
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(&text), of(0.01, None));
    }
}
