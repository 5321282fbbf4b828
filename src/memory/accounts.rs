//! The resident memory of this process, by what it holds, and how much of it nobody can explain.

use super::heap::{self, Heap};
use super::maps::{Addresses, Maps, resident};

/// Where the memory of the served model is, and how much of the heap each phase of the start has taken.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    /// Codes of the weights, if they are in a mapped file.
    pub mapped: Option<Addresses>,
    /// Bytes of codes in memory of this process.
    pub codes: u64,
    /// Bytes of scales and other floats of the weights, which are on the heap.
    pub scales: u64,
    /// Memory reserved for keys and values.
    pub kv_cache: Vec<Addresses>,
    /// Memory reserved for the states of sequences and for snapshots.
    pub states: Vec<Addresses>,
    /// Allocated before the model was opened.
    pub runtime: u64,
    /// By how much the allocated memory grew with the tokenizer, the chat template and the vocabulary of grammars.
    pub tokenizer: u64,
    /// Allocated when the model was ready to serve, everything together.
    pub ready: u64,
    /// Of it, buffers of steps.
    pub ready_buffers: u64,
}

/// Resident bytes, by component; the names are the label of a metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reconciled {
    /// What is known.
    pub components: Vec<(&'static str, u64)>,
    /// What the kernel counts beyond the sum of the components; negative if it counts less.
    pub unexplained: i64,
    /// Resident bytes of the mapped file of weights.
    pub mapped: u64,
}

impl Reconciled {
    /// What the kernel counts.
    pub fn resident(&self) -> u64 {
        let sum: u64 = self.components.iter().map(|part| part.1).sum();
        sum.saturating_add_signed(self.unexplained)
    }
}

impl Accounts {
    /// Compares these accounts with what the kernel and the allocator count now. `buffers` is the present size of the
    /// buffers of steps. `None` if either does not say.
    pub fn reconcile(&self, buffers: u64) -> Option<Reconciled> {
        let maps = Maps::now(self.mapped.as_ref())?;
        let cache = resident(&self.kv_cache, maps.page)?;
        let states = resident(&self.states, maps.page)?;
        Some(self.compare(&maps, heap::heap()?, [cache, states], buffers))
    }

    fn compare(
        &self,
        maps: &Maps,
        heap: Heap,
        [kv_cache, states]: [u64; 2],
        buffers: u64,
    ) -> Reconciled {
        // Other memory that borders on a stack, be it the heap or the KV cache, is one map with it.
        let others = self.codes + kv_cache + states;
        let known = others + heap.allocated;
        let among_stacks = known.saturating_sub(maps.anonymous).min(maps.stacks);
        // What the allocator keeps may be resident or not: no more than is resident beyond what it has handed out.
        let of_heap = (maps.anonymous + among_stacks).saturating_sub(others);
        let kept = of_heap.saturating_sub(heap.allocated).min(heap.free);
        let first = self.scales + self.runtime + self.tokenizer + self.ready_buffers;
        let since_ready = heap.allocated.saturating_sub(self.ready);
        let more_buffers = buffers.saturating_sub(self.ready_buffers);
        let components = vec![
            ("code", maps.code),
            ("stacks", maps.stacks - among_stacks),
            ("weights", maps.asked + self.codes),
            ("scales", self.scales),
            ("kv_cache", kv_cache),
            ("states", states),
            ("step_buffers", buffers),
            ("runtime", self.runtime),
            ("tokenizer", self.tokenizer),
            ("description", self.ready.saturating_sub(first)),
            ("serving", since_ready.saturating_sub(more_buffers)),
            ("allocator_free", kept),
            ("other_files", maps.other_files),
        ];
        let sum: u64 = components.iter().map(|(_, bytes)| bytes).sum();
        let unexplained = maps.total().cast_signed() - sum.cast_signed();
        Reconciled {
            components,
            unexplained,
            mapped: maps.asked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn accounts() -> Accounts {
        Accounts {
            codes: 100 * MIB,
            scales: 2 * MIB,
            runtime: 3 * MIB,
            tokenizer: 5 * MIB,
            ready: 12 * MIB,
            ready_buffers: MIB,
            ..Accounts::default()
        }
    }

    fn maps(anonymous: u64) -> Maps {
        Maps {
            code: 10 * MIB,
            stacks: 2 * MIB,
            anonymous,
            page: 4096,
            ..Maps::default()
        }
    }

    fn value(found: &Reconciled, name: &str) -> u64 {
        let found = found.components.iter().find(|part| part.0 == name);
        found.expect(name).1
    }

    #[test]
    fn what_everybody_counts_leaves_nothing_to_explain() {
        let heap = Heap {
            allocated: 20 * MIB,
            free: 4 * MIB,
        };
        // Three of the four free MiB are resident.
        let maps = maps(100 * MIB + 7 * MIB + 20 * MIB + 3 * MIB);
        let found = accounts().compare(&maps, heap, [7 * MIB, 0], 5 * MIB);
        assert_eq!(found.unexplained, 0, "{found:?}");
        for (name, mib) in [
            ("weights", 100),
            ("scales", 2),
            ("kv_cache", 7),
            ("step_buffers", 5),
            ("description", 1),
            // Eight more than at first, four of which are buffers.
            ("serving", 4),
            ("allocator_free", 3),
        ] {
            assert_eq!(value(&found, name), mib * MIB, "{name}");
        }
    }

    #[test]
    fn memory_that_nobody_asked_for_is_unexplained() {
        let heap = Heap {
            allocated: 12 * MIB,
            free: MIB,
        };
        let found = accounts().compare(&maps(150 * MIB), heap, [0, 0], MIB);
        assert_eq!(found.unexplained, 37 * MIB.cast_signed(), "{found:?}");
        // And codes that were swapped out, or never written, are missing.
        let found = accounts().compare(&maps(62 * MIB), heap, [0, 0], MIB);
        assert_eq!(found.unexplained, -48 * MIB.cast_signed(), "{found:?}");
    }

    #[test]
    fn a_piece_of_the_heap_that_borders_on_a_stack_counts_once() {
        let heap = Heap {
            allocated: 20 * MIB,
            free: 0,
        };
        let found = accounts().compare(&maps(100 * MIB + 19 * MIB), heap, [0, 0], MIB);
        assert_eq!(value(&found, "stacks"), MIB);
        assert_eq!(found.unexplained, 0, "{found:?}");
    }

    #[test]
    fn a_cache_that_borders_on_a_stack_counts_once() {
        let heap = Heap {
            allocated: 20 * MIB,
            free: MIB,
        };
        let mut maps = maps(100 * MIB + 20 * MIB);
        // Two MiB of stacks, and the cache.
        maps.stacks += 70 * MIB;
        let found = accounts().compare(&maps, heap, [70 * MIB, 0], MIB);
        assert_eq!(value(&found, "kv_cache"), 70 * MIB);
        assert_eq!(value(&found, "stacks"), 2 * MIB);
        assert_eq!(found.unexplained, 0, "{found:?}");
    }
}
