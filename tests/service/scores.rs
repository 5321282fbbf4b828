//! Tests that log-probabilities over HTTP are those of the model, on which evaluations through the server depend.

use microgranite::model::{self, Forward, Granite, Span};
use microgranite::sources::{self, Reference};
use serde_json::{Value, json};

use crate::harness::{Service, fixture};

/// A tiny Granite, loaded as by `serve`.
fn granite() -> Granite {
    let folder = Reference::Folder(fixture("granite-3-tiny"));
    let checkpoint = sources::open(&folder, &sources::Settings::from_variables(|_| None, false));
    let settings = model::Settings {
        threads: 2,
        slots: 4,
        snapshots: 0,
        kv_bytes: 8 << 20,
        context: None,
        weights: model::Placement::default(),
    };
    model::load(&checkpoint.unwrap(), &settings, &mut |_, _| ()).unwrap()
}

/// Contexts and continuations, as in an evaluation.
fn pairs() -> Vec<(Vec<u32>, Vec<u32>)> {
    let ids = |seed: u32, len: u32| -> Vec<u32> {
        (0..len)
            .map(|at| (seed * 31 + at * (seed + 7)) % 317)
            .collect()
    };
    (1..=24)
        .map(|seed| (ids(seed, 3 + seed * 5 % 70), ids(seed + 100, 1 + seed % 6)))
        .collect()
}

/// The log-likelihood of `continuation`, and whether it is the greedy one, computed by the model itself.
fn in_process(model: &mut Granite, context: &[u32], continuation: &[u32]) -> (f64, bool) {
    let tokens = [context, continuation].concat();
    let vocab = model.vocab_size();
    let span = Span {
        tokens: &tokens,
        start: 0,
        pages: &[0, 1],
        slot: 0,
        certain: usize::MAX,
        restore: None,
        saves: &[],
        logit_rows: tokens.len(),
    };
    let logits = model.forward(&[span]);
    let (mut sum, mut is_greedy) = (0.0, true);
    for (at, &token) in tokens.iter().enumerate().skip(context.len()) {
        let row = &logits[(at - 1) * vocab..at * vocab];
        let total: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        sum += f64::from(row[token as usize]) - total.ln();
        is_greedy &= row.iter().all(|&other| other <= row[token as usize]);
    }
    (sum, is_greedy)
}

/// The same, computed from a response as lm-evaluation-harness does.
fn over_http(choice: &Value, context: usize) -> (f64, bool) {
    let list = |name: &str| choice["logprobs"][name].as_array().unwrap().clone();
    let scored = list("token_logprobs").into_iter().zip(list("top_logprobs"));
    let (mut sum, mut is_greedy) = (0.0, true);
    // The last token is the generated one, which the request cannot do without.
    for (logprob, top) in scored.take(list("tokens").len() - 1).skip(context) {
        let best = top
            .as_object()
            .unwrap()
            .values()
            .map(|value| value.as_f64().unwrap());
        sum += logprob.as_f64().unwrap();
        is_greedy &= logprob.as_f64().unwrap() == best.fold(f64::MIN, f64::max);
    }
    (sum, is_greedy)
}

#[tokio::test]
async fn log_likelihoods_over_http_are_those_of_the_model_in_batches_of_any_size() {
    let mut model = granite();
    let service = Service::start(granite());
    let mut pairs = pairs();
    // Makes some continuations greedy; otherwise the test would not show that greedy ones are recognized.
    for (context, continuation) in &mut pairs[..8] {
        let body = json!({"prompt": context, "max_tokens": 3, "temperature": 0, "return_token_ids": true, "ignore_eos": true});
        let ids = service.complete(body).await["choices"][0]["token_ids"].clone();
        *continuation = serde_json::from_value(ids).unwrap();
    }
    let mut first: Option<Vec<Value>> = None;
    for batch in [1, 5, 16] {
        let mut choices: Vec<Value> = Vec::new();
        for pairs in pairs.chunks(batch) {
            let prompts: Vec<Vec<u32>> = pairs.iter().map(|(a, b)| [&a[..], b].concat()).collect();
            let body = json!({
                "prompt": prompts, "echo": true, "logprobs": 1, "max_tokens": 1, "temperature": 0, "seed": 1234,
            });
            let answer = service.complete(body).await;
            choices.extend(answer["choices"].as_array().unwrap().iter().cloned());
        }
        for choice in &mut choices {
            choice["index"] = json!(0);
        }
        let mut greedy = 0;
        for ((context, continuation), choice) in pairs.iter().zip(&choices) {
            let (exact, is_greedy) = in_process(&mut model, context, continuation);
            let (sum, said_greedy) = over_http(choice, context.len());
            assert!(
                (sum - exact).abs() < 1e-5 * exact.abs().max(1.0),
                "{sum} {exact}"
            );
            assert_eq!(said_greedy, is_greedy);
            greedy += usize::from(is_greedy);
        }
        assert!((8..24).contains(&greedy), "{greedy} of 24 are greedy");
        let first = first.get_or_insert_with(|| choices.clone());
        assert_eq!(*first, choices, "batches of {batch}");
    }
}
