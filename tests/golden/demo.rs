//! SmolLM2-135M-Instruct from the demo's GGUF file: every prompt of `smollm2-reference.json`.

use microgranite::sources;
use microgranite::study::evaluate::log_softmax;
use microgranite::study::reference::Arithmetic;
use serde::Deserialize;

use crate::{checkpoint, reference, test_file};

/// In nats: one percent of a probability. transformers and candle differ by far less.
const TOLERANCE: f64 = 0.01;

#[derive(Deserialize)]
struct Recorded {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: String,
    ids: Vec<u32>,
    /// Of each id except the first.
    prompt_logprobs: Vec<f64>,
    /// The most likely ids after the prompt, with their log-probabilities.
    next_top10: Vec<(u32, f64)>,
    /// The ids after the prompt, up to and including end-of-text.
    greedy_ids: Vec<u32>,
}

fn recorded() -> Vec<Case> {
    let text = std::fs::read_to_string(test_file("fixtures/smollm2-reference.json"));
    let recorded: Recorded = serde_json::from_str(&text.unwrap()).unwrap();
    recorded.cases
}

#[test]
#[ignore = "needs the demo model: run `microgranite pull demo`"]
fn prompts_are_tokenized_scored_and_continued_as_recorded() {
    let checkpoint = checkpoint(&sources::Reference::Demo);
    let reference = reference(&checkpoint, Arithmetic::F32);
    let cases = recorded();
    assert!(!cases.is_empty());
    let mut largest = 0f64;
    for case in cases {
        let prompt = &case.prompt;
        let encoded = checkpoint.tokenizer.encode(prompt.as_str(), true).unwrap();
        assert_eq!(encoded.get_ids(), case.ids, "{prompt:?}");

        let logits = reference.logits(&case.ids).unwrap();
        let rows: Vec<Vec<f64>> = logits
            .chunks_exact(logits.len() / case.ids.len())
            .map(log_softmax)
            .collect();
        let prompt_pairs = (rows.iter().zip(&case.ids[1..]))
            .map(|(row, &id)| row[id as usize])
            .zip(case.prompt_logprobs.iter().copied());
        let next = rows.last().unwrap();
        let next_pairs = case
            .next_top10
            .iter()
            .map(|&(id, p)| (next[id as usize], p));
        assert_eq!(case.prompt_logprobs.len(), case.ids.len() - 1);
        assert_eq!(case.next_top10.len(), 10);
        for (found, expected) in prompt_pairs.chain(next_pairs) {
            let difference = (found - expected).abs();
            assert!(
                difference <= TOLERANCE,
                "{prompt:?}: {found}, not {expected}"
            );
            largest = largest.max(difference);
        }

        let greedy = reference.greedy(&case.ids, case.greedy_ids.len()).unwrap();
        assert_eq!(greedy, case.greedy_ids, "{prompt:?}");
    }
    println!("largest difference of a log-probability: {largest:.1e}");
}
