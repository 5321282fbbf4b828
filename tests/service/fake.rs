//! Fake models for tests. They depend on pages and positions as a real model does, but are thousands of times faster.

use std::time::Duration;

use microgranite::model::{Forward, PAGE_TOKENS, Rewind, Span};

use crate::harness::VOCAB;

/// As long as a layer takes; between layers, a model can give a step up.
const LAYER_TIME: Duration = Duration::from_millis(20);

/// A model whose next token follows from the tokens before it, which it reads back from its KV pages.
pub struct Fake {
    pages: Vec<[u32; PAGE_TOKENS]>,
    next: Box<Rule>,
    context: usize,
    step_time: Duration,
    logits: Vec<f32>,
}

/// A function from the tokens so far to what follows them.
type Rule = dyn Fn(&[u32]) -> Next + Send;

/// The logits after some tokens.
pub enum Next {
    /// This token is by far the most likely.
    Token(u32),
    /// All tokens are about equally likely; this number decides their order.
    Any(u64),
    /// The logits are NaN, as from a defective model.
    NotANumber,
}

impl Fake {
    /// A model that follows the rule `next`.
    pub fn new(next: impl Fn(&[u32]) -> Next + Send + 'static) -> Self {
        Self {
            pages: vec![[0; PAGE_TOKENS]; 1024],
            next: Box::new(next),
            context: 4096,
            step_time: Duration::ZERO,
            logits: Vec::new(),
        }
    }

    /// A model that repeats `tokens`, beginning with the first one after a prompt of one token.
    pub fn reciting(tokens: Vec<u32>) -> Self {
        Self::new(move |before| Next::Token(tokens[(before.len() - 1) % tokens.len()]))
    }

    /// A model that continues every sequence differently: two answers are the same only if their prompts are.
    pub fn babbling() -> Self {
        Self::new(|before| {
            let hash = before
                .iter()
                .fold(0xcbf2_9ce4_8422_2325, |hash: u64, &token| {
                    (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3)
                });
            Next::Any(hash)
        })
    }

    /// Makes every step take this long, like a model that reads its weights.
    pub fn with_step_time(mut self, step_time: Duration) -> Self {
        self.step_time = step_time;
        self
    }

    /// Sets the context length; the KV cache holds one such context.
    pub fn with_context(mut self, context: usize) -> Self {
        self.context = context;
        self.pages
            .resize(context.div_ceil(PAGE_TOKENS), [0; PAGE_TOKENS]);
        self
    }
}

impl Forward for Fake {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn context_length(&self) -> usize {
        self.context
    }

    fn page_count(&self) -> usize {
        self.pages.len()
    }

    fn page_bytes(&self) -> usize {
        PAGE_TOKENS * size_of::<u32>()
    }

    fn rewind(&self) -> Rewind {
        Rewind::Free
    }

    fn forward(&mut self, spans: &[Span<'_>]) -> &[f32] {
        let logits = self.forward_while(spans, &|| true);
        logits.expect("it is wanted to its end")
    }

    fn forward_while(
        &mut self,
        spans: &[Span<'_>],
        is_wanted: &dyn Fn() -> bool,
    ) -> Option<&[f32]> {
        let mut left = self.step_time;
        while left > LAYER_TIME {
            std::thread::sleep(LAYER_TIME);
            left -= LAYER_TIME;
            if !is_wanted() {
                return None;
            }
        }
        std::thread::sleep(left);
        self.logits.clear();
        for span in spans {
            for (at, &token) in (span.start..).zip(span.tokens) {
                let page = span.pages[at / PAGE_TOKENS] as usize;
                self.pages[page][at % PAGE_TOKENS] = token;
            }
            let length = span.start + span.tokens.len();
            let tokens: Vec<u32> = span
                .pages
                .iter()
                .flat_map(|&page| self.pages[page as usize])
                .take(length)
                .collect();
            for end in length - span.logit_rows..length {
                match (self.next)(&tokens[..=end]) {
                    Next::Token(token) => self.logits.extend(
                        (0..VOCAB).map(|id| if id == token as usize { 100.0 } else { 0.0 }),
                    ),
                    Next::NotANumber => self.logits.extend([f32::NAN; VOCAB]),
                    // The end of text is never likely, so answers have the requested length.
                    Next::Any(hash) => self.logits.extend((0..VOCAB as u64).map(|id| {
                        let mixed = (hash ^ id).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                        if id == 0 {
                            -100.0
                        } else {
                            mixed as f32 / (1 << 22) as f32
                        }
                    })),
                }
            }
        }
        Some(&self.logits)
    }
}
