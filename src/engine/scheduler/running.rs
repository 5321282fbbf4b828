//! A generation before its admission and after it.

use super::super::pages::Pages;
use super::Job;
use crate::model::{PAGE_TOKENS, Save};

/// A generation that waits for a slot in the batch.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    pub(super) job: T,
    pub(super) prompt_len: usize,
    pub(super) max_len: usize,
    /// Whether it has run before.
    pub(super) was_preempted: bool,
}

/// A generation that holds a slot in the batch.
#[derive(Debug)]
pub struct Running<T> {
    /// What the caller attached.
    pub job: T,
    pub(super) prompt_len: usize,
    pub(super) max_len: usize,
    /// Positions known at admission: the prompt, and after a preemption also what had been generated.
    pub(super) prefill_len: usize,
    /// Positions at the beginning that came from the prefix cache; always less than `prefill_len`.
    pub(super) reused: usize,
    /// Positions whose keys and values are in the pages.
    pub(super) cached: usize,
    /// Rows that the planned step adds.
    pub(super) planned: usize,
    /// See [`Running::slot`].
    pub(super) slot: u32,
    /// Pages for the cached and planned positions, and sometimes a few more.
    pub(super) pages: Vec<u32>,
    /// How many of the first pages are published: other generations may hold them too, so they are never written.
    pub(super) published: usize,
    /// The snapshot that its first step begins with; it is held until then.
    pub(super) restore: Option<u32>,
    /// How many pages other prompts have in common with this one, if a snapshot at their end would serve the next.
    pub(super) parting: Option<usize>,
    /// The snapshots that the planned step takes.
    pub(super) saves: Vec<Save>,
    /// The page at whose end the last snapshot was taken while it decoded.
    pub(super) rolling: Option<u32>,
}

impl<T> Running<T> {
    /// The KV pages, in order.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// A number below [`max_running`](super::Budget::max_running) that nobody else who runs has, the same from its admission to its end or
    /// its preemption.
    pub const fn slot(&self) -> u32 {
        self.slot
    }

    /// How many of the tokens known at admission were found in the prefix cache.
    pub const fn reused(&self) -> usize {
        self.reused
    }

    /// The snapshot that the planned step begins with.
    pub const fn restore(&self) -> Option<u32> {
        self.restore
    }

    /// The snapshots that the planned step takes.
    pub fn saves(&self) -> &[Save] {
        &self.saves
    }

    /// Whether its prompt is computed.
    pub const fn is_decoding(&self) -> bool {
        self.cached >= self.prefill_len
    }

    /// Prefill rows still to compute; 0 once it decodes.
    pub(super) const fn prefill_left(&self) -> usize {
        self.prefill_len.saturating_sub(self.cached)
    }

    /// Records the snapshots that the step from position `start` on has taken.
    pub(super) fn keep_snapshots(&mut self, pages: &mut Pages, start: usize) {
        let decoded = self.cached > self.prefill_len;
        let Some(snapshots) = pages.snapshots_mut() else {
            return;
        };
        if let Some(restored) = self.restore.take() {
            snapshots.release(restored);
        }
        for save in self.saves.drain(..) {
            let page = self.pages[(start + save.rows) / PAGE_TOKENS - 1];
            let is_new = snapshots.record(save.snapshot, page);
            if is_new
                && decoded
                && let Some(before) = self.rolling.replace(page)
            {
                // Of an answer that grows only the last page matters: the next turn begins there.
                snapshots.evict(before);
            }
        }
    }

    /// Gives up what it holds of snapshots before its first step, or in the middle of one.
    pub(super) fn drop_snapshots(&mut self, pages: &mut Pages) {
        if let (Some(snapshots), Some(restore)) = (pages.snapshots_mut(), self.restore.take()) {
            snapshots.release(restore);
        }
    }
}

impl<T: Job> Running<T> {
    /// The position behind the rows that the next step has to run at least: all certain tokens once it decodes.
    pub(super) fn next_end(&self) -> usize {
        match self.is_decoding() {
            true => known(&self.job),
            false => self.cached + 1,
        }
    }

    /// The tokens known at admission.
    pub(super) fn prefill(&self) -> &[u32] {
        &self.job.tokens()[..self.prefill_len]
    }

    /// Whether it has computed no row yet and may still take pages from the prefix cache. A prompt that is scored is
    /// always computed in full.
    pub(super) fn awaits_its_first_step(&self) -> bool {
        !self.is_decoding() && self.cached == self.reused && !self.job.scores_prompt()
    }
}

/// How many tokens of a job are certain: the prompt's and the generated ones, without the drafts.
pub(super) fn known(job: &impl Job) -> usize {
    job.tokens().len() - job.drafts()
}
