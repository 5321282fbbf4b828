//! A model that computes nothing but checks everything the engine passes to it: it must be valid for a real KV cache.
//!
//! It stores tokens by page and position, as the real model stores keys and values, each with the text before it at
//! that time: a key is valid only behind the very tokens that it was computed behind. Its logits are a hash of what it
//! *reads back* through the pages it is given. So a shared page that is written to, a page with another text, a row
//! that is lost or computed twice, a refused draft that is read, or a position that is off by one either fails a check
//! or changes the tokens.
//!
//! It can also be one that does not go back. Then each slot remembers which text it has seen, and a span that does not go
//! on right there fails a check: a draft that was refused, a beginning that another sequence computed, a slot that is not
//! the sequence's own.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::mpsc;

use microgranite::engine::Settings;
use microgranite::model::{Forward, PAGE_TOKENS, Rewind, Span};

/// Small, so that thousands of steps take no time, but more than one block of the sampler.
pub const VOCAB: usize = 96;
/// After this token the logits are not finite.
pub const NAN_TOKEN: u32 = 94;
/// On this token the model panics.
pub const PANIC_TOKEN: u32 = 95;
/// Bytes of one page, for the metrics.
pub const PAGE_BYTES: usize = 1000;

/// The content of one position of a page.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Row {
    token: u32,
    /// A hash of the text up to and including the token.
    text: u64,
}

/// What a recurrent model keeps of a sequence: all that it has seen, and no way back.
#[derive(Debug, Clone, Copy, PartialEq)]
struct State {
    /// How many rows were run.
    rows: usize,
    /// A hash of the text so far.
    text: u64,
}

pub struct CheckedModel {
    pages: Vec<[Option<Row>; PAGE_TOKENS]>,
    /// By slot.
    states: Vec<Option<State>>,
    snapshots: Vec<Option<State>>,
    rewind: Rewind,
    step_tokens: usize,
    logits: Vec<f32>,
    gate: Option<Gate>,
}

/// The model's side of a [`Stepper`].
struct Gate {
    began: mpsc::Sender<Vec<(usize, usize)>>,
    go: mpsc::Receiver<()>,
}

/// Lets a test pause the model inside its steps. Once it is dropped, steps run freely.
pub struct Stepper {
    began: mpsc::Receiver<Vec<(usize, usize)>>,
    go: mpsc::Sender<()>,
}

impl Stepper {
    /// Waits until a step has begun; returns its spans as `(start, rows)`.
    pub fn began(&self) -> Vec<(usize, usize)> {
        self.began
            .recv_timeout(std::time::Duration::from_secs(20))
            .expect("a step begins")
    }

    /// Lets the step that has begun end.
    pub fn go(&self) {
        self.go.send(()).expect("the engine lives");
    }

    /// Whether no step has begun since the last.
    pub fn is_idle(&self) -> bool {
        self.began.try_recv().is_err()
    }
}

impl CheckedModel {
    pub fn new(settings: &Settings, page_count: usize) -> Self {
        Self {
            pages: vec![[None; PAGE_TOKENS]; page_count],
            states: vec![None; settings.slots()],
            snapshots: Vec::new(),
            rewind: Rewind::Free,
            step_tokens: settings.step_tokens,
            logits: Vec::new(),
            gate: None,
        }
    }

    /// The same model, but one that can only go back to `snapshots` snapshots: a state in the sequence's slot goes with
    /// it from row to row.
    pub fn recurrent(settings: &Settings, page_count: usize, snapshots: usize) -> Self {
        Self {
            rewind: Rewind::Snapshots(snapshots),
            snapshots: vec![None; snapshots],
            ..Self::new(settings, page_count)
        }
    }

    pub fn gated(settings: &Settings, page_count: usize) -> (Self, Stepper) {
        let (began, seen) = mpsc::channel();
        let (release, go) = mpsc::channel();
        let mut model = Self::new(settings, page_count);
        model.gate = Some(Gate { began, go });
        let stepper = Stepper {
            began: seen,
            go: release,
        };
        (model, stepper)
    }

    fn check(&self, spans: &[Span<'_>]) {
        assert!(!spans.is_empty(), "a step without work");
        let slots: HashSet<u32> = spans.iter().map(|span| span.slot).collect();
        assert_eq!(slots.len(), spans.len(), "each sequence has its own slot");
        let count = self.states.len();
        assert!(slots.iter().all(|&slot| (slot as usize) < count));
        let rows: usize = spans.iter().map(|span| span.tokens.len()).sum();
        assert!(rows <= self.step_tokens, "{rows} rows are over the budget");
        // For each page, whether its holder writes into it in this step or may do so later.
        let mut held: HashMap<u32, bool> = HashMap::new();
        for span in spans {
            assert!(!span.tokens.is_empty(), "an empty span");
            assert!(span.tokens.iter().all(|&token| (token as usize) < VOCAB));
            let end = span.start + span.tokens.len();
            assert!(end <= span.pages.len() * PAGE_TOKENS, "pages cover a span");
            assert!(end <= self.context_length(), "the context covers a span");
            for (index, &page) in span.pages.iter().enumerate() {
                assert!((page as usize) < self.pages.len(), "page {page} exists");
                let is_full = (index + 1) * PAGE_TOKENS <= span.start;
                if let Some(other_is_full) = held.insert(page, is_full) {
                    let both = is_full && other_is_full;
                    assert!(both, "page {page} is shared, and written to");
                }
            }
        }
    }

    /// Stores the span's tokens and returns all tokens of its sequence, read back.
    fn store(&mut self, span: &Span<'_>) -> Vec<u32> {
        let mut history = Vec::new();
        let mut text = DefaultHasher::new();
        let slot = |position: usize| {
            let page = span.pages[position / PAGE_TOKENS] as usize;
            (page, position % PAGE_TOKENS)
        };
        for position in 0..span.start {
            let (page, slot) = slot(position);
            let row = self.pages[page][slot];
            let row = row.unwrap_or_else(|| panic!("position {position} was never written"));
            history.push(row.token);
            row.token.hash(&mut text);
            let behind = text.finish();
            assert_eq!(row.text, behind, "position {position} is of another text");
        }
        let is_recurrent = self.rewind != Rewind::Free;
        if is_recurrent {
            let state = match span.restore {
                Some(snapshot) => self.snapshots[snapshot as usize],
                None => self.states[span.slot as usize],
            };
            let (rows, text) = (span.start, text.finish());
            let before = (rows > 0).then_some(State { rows, text });
            assert!(
                (rows == 0 && span.restore.is_none()) || state == before,
                "the state in slot {} is {state:?}, not {before:?}",
                span.slot
            );
        }
        let certain = span.certain.min(span.tokens.len());
        assert!(certain > 0, "the last token before the drafts is certain");
        assert!(span.saves.is_sorted_by(|a, b| a.rows < b.rows));
        assert!(
            span.saves
                .iter()
                .all(|save| (1..=certain).contains(&save.rows))
        );
        for (position, &token) in (span.start..).zip(span.tokens) {
            let (page, slot) = slot(position);
            if slot == 0 {
                // No content of the page is this sequence's. If another sequence still needs it, that one will fail.
                self.pages[page] = [None; PAGE_TOKENS];
            }
            history.push(token);
            token.hash(&mut text);
            let row = Row {
                token,
                text: text.finish(),
            };
            // What is overwritten may be a refused draft, which is a different token. A recurrent model runs an accepted
            // one again; that it runs nothing else twice shows in its state.
            let before = self.pages[page][slot].replace(row);
            assert!(
                is_recurrent || before != Some(row),
                "position {position} is run twice"
            );
            let state = Some(State {
                rows: history.len(),
                text: text.finish(),
            });
            let done = position + 1 - span.start;
            if done == certain {
                self.states[span.slot as usize] = state;
            }
            for save in span.saves.iter().filter(|save| save.rows == done) {
                self.snapshots[save.snapshot as usize] = state;
            }
        }
        history
    }
}

impl Forward for CheckedModel {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn context_length(&self) -> usize {
        1000
    }

    fn page_count(&self) -> usize {
        self.pages.len()
    }

    fn page_bytes(&self) -> usize {
        PAGE_BYTES
    }

    fn rewind(&self) -> Rewind {
        self.rewind
    }

    fn forward_while(
        &mut self,
        spans: &[Span<'_>],
        is_wanted: &dyn Fn() -> bool,
    ) -> Option<&[f32]> {
        let wanted: usize = spans.iter().map(|span| span.logit_rows).sum();
        self.forward(spans);
        if is_wanted() {
            return Some(&self.logits[..wanted * VOCAB]);
        }
        // Some layers have been computed, and then nothing: what is there is of no text.
        for span in spans {
            for position in span.start..span.start + span.tokens.len() {
                let page = span.pages[position / PAGE_TOKENS] as usize;
                self.pages[page][position % PAGE_TOKENS] = None;
            }
            self.states[span.slot as usize] = None;
            for save in span.saves {
                self.snapshots[save.snapshot as usize] = None;
            }
        }
        None
    }

    fn forward(&mut self, spans: &[Span<'_>]) -> &[f32] {
        if let Some(gate) = &self.gate {
            let work = spans.iter().map(|span| (span.start, span.tokens.len()));
            if gate.began.send(work.collect()).is_ok() {
                // An error means that the test has dropped the gate.
                let _ = gate.go.recv();
            }
        }
        self.check(spans);
        self.logits.clear();
        for span in spans {
            let history = self.store(span);
            assert!(
                !span.tokens.contains(&PANIC_TOKEN),
                "the model was asked to panic"
            );
            for end in history.len() - span.logit_rows..history.len() {
                self.logits.extend(logits_after(&history[..=end]));
            }
        }
        &self.logits
    }
}

/// The logits after a history: between −4 and 4, from a hash of all its tokens and their positions. The two tokens
/// that cause faults are never likely.
pub fn logits_after(history: &[u32]) -> Vec<f32> {
    let mut logits: Vec<f32> = (0..VOCAB as u32)
        .map(|token| {
            let mut hasher = DefaultHasher::new();
            (history, token).hash(&mut hasher);
            (hasher.finish() >> 40) as f32 / (1 << 21) as f32 - 4.0
        })
        .collect();
    logits[NAN_TOKEN as usize] = -200.0;
    logits[PANIC_TOKEN as usize] = -200.0;
    if history.last() == Some(&NAN_TOKEN) {
        logits[VOCAB / 2] = f32::NAN;
    }
    logits
}

/// What greedy decoding must give, worked out without an engine.
pub fn greedy(prompt: &[u32], max_tokens: usize) -> Vec<u32> {
    let mut history = prompt.to_vec();
    for _ in 0..max_tokens {
        let logits = logits_after(&history);
        let best = (0..VOCAB).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
        history.push(best.unwrap() as u32);
    }
    history.split_off(prompt.len())
}
