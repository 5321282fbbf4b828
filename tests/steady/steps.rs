//! A step allocates nothing once the buffers have their final size: neither in the model nor in the engine around it.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use microgranite::engine::{Engine, Generation, Sampling, Settings, TokenEvent};
use microgranite::model::{self, Forward, Granite, Rewind, Span};
use microgranite::sources::{self, Reference};
use microgranite::telemetry::Metrics;

use crate::counting;

/// Runs one test at a time: the counts are those of the whole process.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn tiny(threads: usize) -> Granite {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/granite-3-tiny");
    let sources = sources::Settings::from_variables(|_| None, false);
    let checkpoint = sources::open(&Reference::Folder(folder), &sources).expect("it opens");
    let settings = model::Settings {
        threads,
        slots: 4,
        snapshots: 0,
        kv_bytes: 4 << 20,
        context: None,
        weights: model::Placement::default(),
    };
    model::load(&checkpoint, &settings, &mut |_, _| ()).expect("the fixture loads")
}

#[test]
fn the_model_allocates_nothing_in_steps_of_sizes_it_has_seen() {
    let _alone = alone();
    let mut model = tiny(3);
    let prompt: Vec<u32> = (0..200).map(|i| i * 7 % 320).collect();
    let pages: Vec<Vec<u32>> = (0..4).map(|i| (4 * i..4 * i + 4).collect()).collect();
    let mut steps = |count: usize| {
        for _ in 0..count {
            for (rows, logit_rows) in [(128, 1), (1, 1), (40, 0), (9, 9), (1, 1)] {
                let spans = [0, 1, 2, 3].map(|index| Span {
                    tokens: &prompt[..rows],
                    start: 11 * index,
                    pages: &pages[index],
                    slot: index as u32,
                    certain: 1,
                    restore: None,
                    saves: &[],
                    logit_rows,
                });
                model.forward(&spans[..1]);
                model.forward(&spans);
            }
        }
    };
    steps(2);
    let mut allocations = || {
        let before = counting::all();
        steps(4);
        counting::all() - before
    };
    // On a busy machine fewer threads may take part in some steps, and each then needs larger buffers. Buffers grow
    // only once, so one of a few rounds must be without allocations.
    let rounds: Vec<u64> = std::iter::repeat_with(&mut allocations).take(5).collect();
    assert!(rounds.contains(&0), "allocations in 40 steps: {rounds:?}");
}

/// A model that records the engine thread's allocation count at the beginning and end of each step.
struct Watched {
    inner: Granite,
    counts: Arc<Mutex<Vec<[u64; 2]>>>,
}

impl Forward for Watched {
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn context_length(&self) -> usize {
        self.inner.context_length()
    }

    fn page_count(&self) -> usize {
        self.inner.page_count()
    }

    fn page_bytes(&self) -> usize {
        self.inner.page_bytes()
    }

    fn rewind(&self) -> Rewind {
        self.inner.rewind()
    }

    fn forward(&mut self, spans: &[Span<'_>]) -> &[f32] {
        let began = counting::own();
        let logits = self.inner.forward(spans);
        let mut counts = self.counts.lock().expect("nobody panics with it");
        counts.push([began, counting::own()]);
        logits
    }
}

#[test]
fn the_engine_allocates_nothing_between_two_decoding_steps() {
    let _alone = alone();
    let counts = Arc::new(Mutex::new(Vec::with_capacity(10_000)));
    let model = Watched {
        inner: tiny(2),
        counts: Arc::clone(&counts),
    };
    let metrics = Arc::new(Metrics::new());
    let engine = Engine::start(Box::new(model), Settings::default(), Arc::clone(&metrics));
    let engine = engine.expect("it starts");
    let generation = |seed: u32| Generation {
        prompt: (0..90 + seed)
            .map(|i| (i % (20 + seed)) * 5 % 320)
            .collect(),
        max_tokens: 350,
        sampling: Sampling {
            temperature: if seed == 0 { 0.0 } else { 0.8 },
            top_p: if seed == 1 { 0.9 } else { 1.0 },
            top_k: if seed == 2 { 40 } else { 0 },
            seed: u64::from(seed),
            ..Sampling::default()
        },
        ..Generation::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let streams = engine
            .submit((0..4).map(generation).collect())
            .expect("room");
        let clients = streams.into_iter().map(|mut stream| async move {
            while let Some(TokenEvent::Token(_)) = stream.next().await {}
        });
        futures_util::future::join_all(clients).await;
        engine.drain();
        engine.stopped().await;
    });
    let counts = counts.lock().expect("nobody panics with it");
    // From the end of one step's forward pass to the end of the next.
    let steps: Vec<u64> = counts.windows(2).map(|two| two[1][1] - two[0][1]).collect();
    assert!(steps.len() > 60, "{} steps", steps.len());
    // The first steps process prompts and size the buffers, the last ones end generations. In between, a stream
    // allocates only when its reader lags a block of 32 events behind.
    let busy = steps.iter().filter(|&&count| count > 0).count();
    let quiet = steps.split(|&count| count > 0).map(<[u64]>::len).max();
    println!(
        "{busy} of {} steps allocate; {quiet:?} in a row do not",
        steps.len()
    );
    assert!(busy < steps.len() / 8, "{steps:?}");
    assert!(quiet > Some(steps.len() / 4), "{steps:?}");
}
