//! The task: the next character of two public-domain texts, a part of each held out.

use candle_core::{Device, Result, Tensor};
use microgranite::text::samples::{ALICE, AS_YOU_LIKE_IT};
use rand::RngExt;
use rand_pcg::Pcg64;

/// Characters per sequence.
pub const CONTEXT: usize = 32;

/// ASCII: an id is the character's own code, and 0 ends a text.
pub const VOCABULARY: usize = 128;

/// Sequences per step.
const BATCH: usize = 24;

/// The last tenth of each text is held out.
const HELD_OUT_SHARE: usize = 10;

/// Token ids for training and for the held-out loss.
pub struct Texts {
    train: Vec<u32>,
    held_out: Vec<u32>,
}

impl Texts {
    /// Both texts, split.
    pub fn new() -> Self {
        let (mut train, mut held_out) = (Vec::<u32>::new(), Vec::<u32>::new());
        for text in [ALICE, AS_YOU_LIKE_IT] {
            let ids: Vec<u32> = text.bytes().map(u32::from).collect();
            let (first, last) = ids.split_at(ids.len() - ids.len() / HELD_OUT_SHARE);
            train.extend(first);
            held_out.extend(last);
        }
        Self { train, held_out }
    }

    /// Random sequences, and the next token at each position: `[batch, context]` and `[batch · context]`.
    pub fn batch(&self, random: &mut Pcg64) -> Result<(Tensor, Tensor)> {
        let (mut ids, mut next) = (Vec::<u32>::new(), Vec::<u32>::new());
        for _ in 0..BATCH {
            let start = random.random_range(0..self.train.len() - CONTEXT);
            ids.extend(&self.train[start..start + CONTEXT]);
            next.extend(&self.train[start + 1..start + CONTEXT + 1]);
        }
        let ids = Tensor::from_vec(ids, (BATCH, CONTEXT), &Device::Cpu)?;
        Ok((ids, Tensor::from_vec(next, BATCH * CONTEXT, &Device::Cpu)?))
    }

    /// The held-out text in sequences.
    pub fn held_out(&self) -> impl Iterator<Item = &[u32]> {
        self.held_out.chunks_exact(CONTEXT)
    }

    /// The held-out text as it is.
    pub fn held_out_text(&self) -> String {
        let characters = self.held_out.iter().map(|&id| char::from_u32(id));
        characters.collect::<Option<_>>().expect("ids are ASCII")
    }
}
