//! Recurrent models that go on from snapshots of their states: the same bits as without, and only new tokens computed.

use std::sync::Arc;

use microgranite::engine::{Engine, Generation, Settings, TokenEvent};
use microgranite::model::{self, Forward, PAGE_TOKENS, Save, Span};
use microgranite::telemetry::Metrics;
use tokio::runtime;

use super::{checkpoint, ids, load};

const HYBRIDS: [&str; 2] = ["granite-4-hybrid-tiny", "granite-4-hybrid-moe-tiny"];

fn with_snapshots(name: &str, snapshots: usize) -> model::Granite {
    let settings = model::Settings {
        threads: 2,
        slots: 4,
        snapshots,
        kv_bytes: 8 << 20,
        context: None,
        weights: model::Placement::default(),
    };
    model::load(&checkpoint(name), &settings, &mut |_, _| ()).expect("the fixture loads")
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn a_span_goes_on_from_a_snapshot_and_drafts_leave_no_trace() {
    let pages = [0, 1, 2, 3, 4];
    for name in HYBRIDS {
        let (tokens, wrong) = (ids(3, 200), ids(50, 200));
        let expected = bits(load(name, 2).logits(&tokens));
        let vocab = expected.len() / tokens.len();
        for drafts in [0, 1, 7] {
            let mut model = with_snapshots(name, 2);
            model.poison_states();
            let saves = [(64, 1), (128, 0)].map(|(rows, snapshot)| Save { rows, snapshot });
            // The first 150 tokens are certain; those behind them are not those of the text.
            let first = [&tokens[..150], &wrong[..drafts]].concat();
            let span = Span {
                tokens: &first,
                start: 0,
                pages: &pages,
                slot: 2,
                certain: 150,
                restore: None,
                saves: &saves,
                logit_rows: 150 + drafts,
            };
            let logits = bits(model.forward(&[span]));
            assert!(logits[..150 * vocab] == expected[..150 * vocab], "{name}");
            for (start, slot, restore) in [(150, 2, None), (64, 3, Some(1)), (128, 2, Some(0))] {
                let span = Span {
                    tokens: &tokens[start..],
                    start,
                    pages: &pages,
                    slot,
                    certain: usize::MAX,
                    restore,
                    saves: &[],
                    logit_rows: tokens.len() - start,
                };
                let logits = bits(model.forward(&[span]));
                let what = format!("{name}: {drafts} drafts, from {start}");
                assert!(logits == expected[start * vocab..], "{what}");
            }
        }
    }
}

/// The answers of a conversation of five turns, and how many tokens of each prompt were found.
fn conversation(name: &str, settings: Settings, snapshots: usize) -> (Vec<Vec<u32>>, Vec<usize>) {
    let model = Box::new(with_snapshots(name, snapshots));
    let engine = Engine::start(model, settings, Arc::new(Metrics::new())).expect("it starts");
    let runtime = runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(async {
        let (mut prompt, mut answers, mut found) = (ids(1, 100), Vec::new(), Vec::new());
        for turn in 0..5 {
            let generation = Generation {
                prompt: prompt.clone(),
                max_tokens: 45,
                ..Generation::default()
            };
            let mut stream = engine.submit(vec![generation]).expect("room").remove(0);
            let mut answer = Vec::new();
            while let Some(TokenEvent::Token(token)) = stream.next().await {
                answer.push(token);
            }
            found.push(stream.cached_tokens());
            prompt.extend(&answer);
            prompt.extend(ids(30 + turn, 20 + turn as usize));
            answers.push(answer);
        }
        (answers, found)
    })
}

#[test]
fn a_conversation_computes_only_its_new_tokens_and_gets_the_same_answers() {
    for name in HYBRIDS {
        let settings = |prefix_cache, speculation| Settings {
            max_batch: 2,
            prefix_cache,
            speculation,
            ..Settings::default()
        };
        let (expected, found) = conversation(name, settings(false, 0), 0);
        assert_eq!(found, [0; 5]);
        for speculation in [0, 8] {
            let (answers, found) = conversation(name, settings(true, speculation), 2);
            assert!(answers == expected, "{name}");
            // Each turn goes on behind the last full page of what the turn before has computed: all but the last token of
            // its answer.
            let mut computed = 0;
            let mut prompt = 100;
            for (turn, (answer, found)) in answers.iter().zip(&found).enumerate() {
                assert_eq!(
                    *found,
                    computed / PAGE_TOKENS * PAGE_TOKENS,
                    "{name}: turn {turn}"
                );
                computed = prompt + answer.len() - 1;
                prompt += answer.len() + 20 + turn;
            }
        }
    }
}
