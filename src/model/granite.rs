//! A loaded model, and its forward pass.

use super::accounts::{Operations, WeightMemory};
use super::blueprint::{Blueprint, blueprint};
use super::config::ModelConfig;
use super::fold::fold_norm_into_router;
use super::forward::{Forward, PAGE_TOKENS, Rewind, Span};
use super::kv_cache::KvCache;
use super::phases::{MixerState, Workspace, embed, head, mix, process};
use super::rotary::Rotary;
use super::state::States;
use super::step::{Row, Step};
use super::weights::{Mixer, Weights};
use crate::error::Result;
use crate::int8::compute::{Compute, rate};
use crate::int8::kernels::Kernel;
use crate::int8::kernels::pool::Pool;
use crate::int8::memory::Memory;
use crate::memory::accounts::Accounts;

/// A loaded model: weights, KV cache, compute threads and the buffers of a step.
pub struct Granite {
    config: ModelConfig,
    blueprint: Blueprint,
    weights: Weights,
    cache: KvCache,
    states: States,
    rotary: Option<Rotary>,
    context: usize,
    compute: Compute,
    work: Workspace,
    /// Bytes of weights that every step reads, and for each expert of every layer.
    step_bytes: [f64; 2],
}

impl Granite {
    /// Assembles a model. `page_count` KV pages, the states of `slots` sequences and as many `snapshots` are reserved; no
    /// sequence may be longer than `context`.
    ///
    /// # Errors
    /// [`crate::error::Error::Config`] if there is not enough memory for the pages or states.
    pub fn new(
        config: ModelConfig,
        mut weights: Weights,
        page_count: usize,
        [slots, snapshots]: [usize; 2],
        context: usize,
        compute: Compute,
    ) -> Result<Self> {
        weights.layers.iter_mut().for_each(fold_norm_into_router);
        let work = Workspace::new(&config);
        let blueprint = blueprint(&config);
        let without_experts = blueprint.bytes_per_step(&weights, 0.0) as f64;
        let with_one = blueprint.bytes_per_step(&weights, 1.0) as f64;
        Ok(Self {
            step_bytes: [without_experts, with_one - without_experts],
            blueprint,
            cache: KvCache::new(&config, page_count)?,
            states: States::new(&config, slots, snapshots)?,
            rotary: (config.rope_theta).map(|theta| Rotary::new(config.head_dim, theta)),
            config,
            weights,
            context,
            compute,
            work,
        })
    }

    /// The model's shape and constants.
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The memory that the weights take.
    pub fn memory(&self) -> WeightMemory {
        self.blueprint.memory(&self.weights)
    }

    /// Where the memory of the model is, for comparing it with what the system counts.
    pub(crate) fn accounts(&self) -> Accounts {
        let matrices = self.weights.matrices();
        let memories = || matrices.iter().map(|matrix| matrix.memory());
        let own = memories().filter(|memory| memory.shared_with().is_none());
        let codes: u64 = own.map(|memory| memory.bytes().len() as u64).sum();
        let all: u64 = memories().map(|memory| memory.bytes().len() as u64).sum();
        Accounts {
            mapped: memories().find_map(Memory::shared_with),
            codes,
            scales: self.memory().total() - all,
            kv_cache: self.cache.addresses(),
            states: self.states.addresses(),
            ready_buffers: self.buffer_bytes() as u64,
            ..Accounts::default()
        }
    }

    /// Bytes that a decoding step of one row moves: the weights that it reads, and its state, which it reads and writes.
    pub(crate) fn bytes_per_step(&self) -> u64 {
        let taken = self.config.experts.map_or(0, |experts| experts.taken);
        self.bytes_moved(taken as f64, 1)
    }

    /// Bytes that the last step moved if it was a decoding step of `rows` rows: the weights that it read, of the experts
    /// only those that a row had taken, and the rows' states, which it read and wrote.
    pub(crate) fn bytes_of_last_step(&self, rows: usize) -> u64 {
        let read = self.work.experts.as_ref().map_or(0, |buffers| buffers.read);
        self.bytes_moved(read as f64 / self.config.num_layers() as f64, rows)
    }

    fn bytes_moved(&self, experts: f64, rows: usize) -> u64 {
        let states = 2 * rows * States::bytes_per_slot(&self.config);
        self.blueprint.bytes_per_step(&self.weights, experts) + states as u64
    }

    /// Int8 operations of a step.
    pub fn operations(&self) -> Operations {
        self.blueprint.operations()
    }

    /// The weights.
    pub const fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The compute threads, for measuring their peak rates.
    pub const fn pool(&mut self) -> &mut Pool {
        &mut self.compute.pool
    }

    /// The description of the weights, the weights, and what computes with them.
    pub const fn parts(&mut self) -> (&Blueprint, &Weights, &mut Compute) {
        (&self.blueprint, &self.weights, &mut self.compute)
    }

    /// Fills the KV cache and the states with arbitrary numbers, so that steps late in a sequence can be timed without
    /// running the earlier ones.
    pub(crate) fn fill_cache(&mut self) {
        self.cache.fill();
        self.states.fill(1e-3);
    }

    /// Fills the states of all sequences with NaN, so that a sequence that does not begin with a state of its own shows.
    pub fn poison_states(&mut self) {
        self.states.fill(f32::NAN);
    }

    /// The logits after every id, `[ids.len()][vocab]`, from one step on the cache's first pages.
    pub fn logits(&mut self, ids: &[u32]) -> &[f32] {
        let pages: Vec<u32> = (0..ids.len().div_ceil(PAGE_TOKENS) as u32).collect();
        let span = Span {
            tokens: ids,
            start: 0,
            pages: &pages,
            slot: 0,
            certain: usize::MAX,
            restore: None,
            saves: &[],
            logit_rows: ids.len(),
        };
        self.forward(&[span])
    }

    /// Bytes per second at which all threads together read the weights: one pass over at most half a gigabyte of them, which
    /// takes milliseconds.
    pub(crate) fn read_rate(&mut self) -> f64 {
        const MOST_BYTES: usize = 512 << 20;
        const CHUNK_BYTES: usize = 1 << 20;
        let Self {
            weights, compute, ..
        } = self;
        let matrices = weights.matrices();
        let chunks = matrices
            .iter()
            .flat_map(|matrix| matrix.codes().chunks(CHUNK_BYTES))
            .take(MOST_BYTES / CHUNK_BYTES);
        let chunks: Vec<&[u8]> = chunks.collect();
        let (kernel, threads) = (compute.kernel, compute.pool.threads());
        rate(&mut compute.pool, |thread| {
            let shares = chunks.iter().skip(thread).step_by(threads);
            shares.map(|chunk| kernel.read(chunk)).sum()
        })
    }

    /// The kernel in use.
    pub const fn kernel(&self) -> Kernel {
        self.compute.kernel
    }

    /// Number of compute threads, including the engine's own.
    pub fn threads(&self) -> usize {
        self.compute.pool.threads()
    }
}

impl Forward for Granite {
    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn context_length(&self) -> usize {
        self.context
    }

    fn page_count(&self) -> usize {
        self.cache.page_count()
    }

    fn page_bytes(&self) -> usize {
        KvCache::page_bytes(&self.config)
    }

    fn state_bytes(&self) -> usize {
        States::bytes_per_slot(&self.config)
    }

    fn bytes_read(&self, sequences: usize) -> u64 {
        let layers = self.config.num_layers().max(1) as f64;
        let experts = self.work.experts.as_ref().map_or(0, |buffers| buffers.read);
        let states = sequences * States::bytes_per_slot(&self.config);
        let [all, expert] = self.step_bytes;
        (all + expert * experts as f64 / layers) as u64 + states as u64
    }

    fn buffer_bytes(&self) -> usize {
        self.work.bytes() + self.compute.buffer_bytes()
    }

    fn rewind(&self) -> Rewind {
        match self.config.mamba {
            Some(_) => Rewind::Snapshots(self.states.snapshots()),
            None => Rewind::Free,
        }
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
        let Self {
            config,
            weights,
            cache,
            states,
            rotary,
            compute,
            work,
            ..
        } = self;
        let dim = config.head_dim;
        let (mut rows, mut tables) = (
            std::mem::take(&mut work.rows),
            std::mem::take(&mut work.rotary),
        );
        rows.clear();
        for (span, tokens) in spans.iter().enumerate() {
            let positions = tokens.start..tokens.start + tokens.tokens.len();
            rows.extend(positions.map(|position| Row { span, position }));
        }
        if let Some(rotary) = rotary {
            tables.resize(rows.len() * dim, 0.0);
            for (row, table) in rows.iter().zip(tables.chunks_exact_mut(dim)) {
                rotary.fill(row.position, table);
            }
        }
        let step = Step {
            config,
            spans,
            rows: &rows,
            rotary: rotary.is_some().then_some(&tables),
        };

        if let Some(experts) = &mut work.experts {
            experts.read = 0;
        }
        embed(&step, compute, weights, &mut work.residual);
        let (mut with_attention, mut with_mamba) = (0.., 0..);
        let mut is_complete = true;
        for layer in &weights.layers {
            if !is_wanted() {
                is_complete = false;
                break;
            }
            let state = match &layer.mixer {
                Mixer::Attention(_) => with_attention
                    .next()
                    .map(|n| MixerState::Pages(cache.layer(n))),
                Mixer::Mamba(_) => with_mamba
                    .next()
                    .map(|n| MixerState::States(states.layer(n))),
            };
            mix(&step, compute, layer, state.expect("endless"), work);
            process(&step, compute, layer, work);
        }
        if is_complete {
            head(&step, compute, weights, work);
        }
        (work.rows, work.rotary) = (rows, tables);
        let wanted: usize = spans.iter().map(|span| span.logit_rows).sum();
        is_complete.then(|| &self.work.logits[..wanted * self.config.vocab_size])
    }
}
