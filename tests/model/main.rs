//! The int8 model on real checkpoints: close to the recorded float logits, and the same bits however steps are
//! composed.

mod engine;
mod quantized;
mod snapshots;

use std::path::{Path, PathBuf};

use microgranite::model::{
    self, Experts, Forward, Granite, Mamba, MixerKind, ModelConfig, PAGE_TOKENS, Span,
};
use microgranite::sources::{self, Checkpoint, Reference};
use microgranite::study::evaluate::log_softmax;
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn checkpoint(name: &str) -> Checkpoint {
    let settings = sources::Settings::from_variables(|_| None, false);
    sources::open(&Reference::Folder(fixture(name)), &settings).expect("the fixture opens")
}

fn load(name: &str, threads: usize) -> Granite {
    let settings = model::Settings {
        threads,
        slots: 4,
        snapshots: 0,
        kv_bytes: 8 << 20,
        context: None,
        weights: model::Placement::default(),
    };
    model::load(&checkpoint(name), &settings, &mut |_, _| ()).expect("the fixture loads")
}

/// A model of two layers and random codes in which the four query heads of a key head make a whole group of 256, as in
/// Granite 2B; those of the fixtures do not.
fn whole_groups(threads: usize) -> Granite {
    let config = ModelConfig {
        hidden_size: 512,
        mixers: vec![MixerKind::Attention; 2],
        num_heads: 8,
        num_kv_heads: 2,
        head_dim: 64,
        intermediate_size: 640,
        vocab_size: 320,
        ..model::shapes::named("granite-3.3-2b").expect("a published shape")
    };
    let settings = model::Settings {
        threads,
        slots: 4,
        snapshots: 0,
        kv_bytes: 8 << 20,
        context: Some(512),
        weights: model::Placement::default(),
    };
    model::random(config, &settings).expect("it fits")
}

/// One fixture of every kind of layer.
const MODELS: [&str; 4] = [
    "granite-3-tiny",
    "granite-4-hybrid-tiny",
    "granite-4-hybrid-moe-tiny",
    "granite-3-moe-tiny",
];

/// A hybrid of random codes whose sizes differ from the fixtures': more experts than one vector of the router, groups
/// that are not whole, heads that are wider than a panel.
fn wide_hybrid(threads: usize) -> Granite {
    let config = ModelConfig {
        hidden_size: 320,
        mixers: vec![MixerKind::Mamba, MixerKind::Attention, MixerKind::Mamba],
        num_heads: 5,
        num_kv_heads: 1,
        head_dim: 64,
        mamba: Some(Mamba {
            heads: 5,
            head_dim: 128,
            state_size: 64,
        }),
        intermediate_size: 96,
        experts: Some(Experts {
            count: 20,
            taken: 5,
            width: 288,
        }),
        vocab_size: 320,
        ..model::shapes::named("granite-4.0-h-tiny").expect("a published shape")
    };
    let settings = model::Settings {
        threads,
        slots: 4,
        snapshots: 0,
        kv_bytes: 8 << 20,
        context: Some(512),
        weights: model::Placement::default(),
    };
    model::random(config, &settings).expect("it fits")
}

/// The recorded ids and float logits: `[2][48]` and `[2][48][vocab]`.
fn recorded(name: &str) -> (Vec<Vec<u32>>, Vec<f32>) {
    let tensors = candle_core::safetensors::load(
        fixture(name).join("reference.safetensors"),
        &candle_core::Device::Cpu,
    )
    .expect("the recorded outputs load");
    let ids: Vec<Vec<i64>> = tensors["input_ids"].to_vec2().expect("two rows of ids");
    let logits = tensors["logits"]
        .flatten_all()
        .and_then(|logits| logits.to_vec1())
        .expect("f32 logits");
    (
        ids.into_iter()
            .map(|row| row.into_iter().map(|id| id as u32).collect())
            .collect(),
        logits,
    )
}

/// The logits after every prefix of `ids`, running one token at a time on pages `first_page ..`.
fn token_by_token(model: &mut Granite, ids: &[u32], first_page: u32) -> Vec<f32> {
    let pages: Vec<u32> =
        (first_page..first_page + ids.len().div_ceil(PAGE_TOKENS) as u32).collect();
    let step = |(start, token): (usize, &u32)| {
        let span = Span {
            tokens: std::slice::from_ref(token),
            start,
            pages: &pages,
            slot: 0,
            certain: usize::MAX,
            restore: None,
            saves: &[],
            logit_rows: 1,
        };
        model.forward(&[span]).to_vec()
    };
    ids.iter().enumerate().flat_map(step).collect()
}

#[test]
fn the_int8_logits_are_close_to_the_recorded_float_logits() {
    for name in ["granite-3-tiny", "granite-4-dense-tiny"] {
        let mut model = load(name, 2);
        let vocab = model.vocab_size();
        let (ids, expected) = recorded(name);
        let mut divergence = 0.0;
        let mut rows = 0.0;
        for (ids, expected) in ids.iter().zip(expected.chunks_exact(48 * vocab)) {
            let found = token_by_token(&mut model, ids, 0);
            for (found, expected) in found.chunks_exact(vocab).zip(expected.chunks_exact(vocab)) {
                let (p, q) = (log_softmax(expected), log_softmax(found));
                divergence += p
                    .iter()
                    .zip(&q)
                    .map(|(p, q)| p.exp() * (p - q))
                    .sum::<f64>();
                rows += 1.0;
            }
        }
        let mean = divergence / rows;
        // Measured 4e-7 and 2e-6; these random models are near uniform, so the numbers are small throughout.
        println!("{name}: mean KL {mean:.2e}");
        assert!(mean < 5e-6, "{name}: mean KL {mean}");
    }
}

/// How a property case cuts two sequences into steps.
#[derive(Debug, Clone)]
struct Cut {
    chunks: Vec<usize>,
    swapped: bool,
    threads: usize,
}

fn cut() -> impl Strategy<Value = Cut> {
    (
        prop::collection::vec(1usize..90, 1..6),
        any::<bool>(),
        1usize..4,
    )
        .prop_map(|(chunks, swapped, threads)| Cut {
            chunks,
            swapped,
            threads,
        })
}

fn ids(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32)
        .map(|i| (seed + i * i * 7 + i * 13) % 320)
        .collect()
}

/// Runs two sequences together in chunks; returns the last logits of each.
fn in_chunks(model: &mut Granite, sequences: [&[u32]; 2], cut: &Cut) -> [Vec<f32>; 2] {
    let pages: [Vec<u32>; 2] = [vec![7, 1, 4, 2], vec![3, 0, 6, 5]];
    let (mut done, mut last) = ([0, 0], [Vec::new(), Vec::new()]);
    let mut chunks = cut.chunks.iter().cycle();
    while done[0] < sequences[0].len() || done[1] < sequences[1].len() {
        let order = if cut.swapped { [1, 0] } else { [0, 1] };
        let mut spans = Vec::new();
        let mut owners = Vec::new();
        for which in order {
            let left = &sequences[which][done[which]..];
            let chunk = (*chunks.next().expect("a cycle does not end")).min(left.len());
            if chunk > 0 {
                let (tokens, start) = (&left[..chunk], done[which]);
                spans.push(Span {
                    tokens,
                    start,
                    pages: &pages[which],
                    slot: which as u32,
                    certain: usize::MAX,
                    restore: None,
                    saves: &[],
                    logit_rows: usize::from(chunk == left.len()),
                });
                owners.push((which, chunk));
            }
        }
        let vocab = model.vocab_size();
        let mut logits = model.forward(&spans).chunks_exact(vocab);
        for (span, (which, chunk)) in spans.iter().zip(owners) {
            done[which] += chunk;
            if span.logit_rows > 0 {
                last[which] = logits.next().expect("logits were asked for").to_vec();
            }
        }
    }
    last
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn logits_do_not_depend_on_batching_chunking_order_or_threads(
        cut in cut(), lengths in (1usize..200, 1usize..200), seed in 0u32..1000, kind in 0usize..MODELS.len() + 2,
    ) {
        let load = |threads| match MODELS.get(kind) {
            Some(name) => load(name, threads),
            None if kind == MODELS.len() => whole_groups(threads),
            None => wide_hybrid(threads),
        };
        let (a, b) = (ids(seed, lengths.0), ids(seed + 17, lengths.1));
        let mut alone = load(1);
        let vocab = alone.vocab_size();
        let expected_a = token_by_token(&mut alone, &a, 0).split_off((a.len() - 1) * vocab);
        let expected_b = token_by_token(&mut alone, &b, 4).split_off((b.len() - 1) * vocab);
        let mut together = load(cut.threads);
        together.poison_states();
        let [found_a, found_b] = in_chunks(&mut together, [&a, &b], &cut);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&found_a), bits(&expected_a));
        prop_assert_eq!(bits(&found_b), bits(&expected_b));
    }
}
