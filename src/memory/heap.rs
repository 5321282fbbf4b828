//! What the allocator has handed out, and what it keeps.

/// Bytes of the allocator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heap {
    /// Handed out, with what the allocator adds to each piece.
    pub allocated: u64,
    /// Given back by the program, and kept for later or not yet given back to the system.
    pub free: u64,
}

/// The state of the allocator; `None` if it does not say. It takes each arena's lock for a moment.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn heap() -> Option<Heap> {
    use malloc_info::info::{SystemType, TotalType};
    let info = malloc_info::malloc_info().ok()?;
    let current = |system: &&malloc_info::info::System| system.r#type == SystemType::Current;
    let arenas = info.system.iter().find(current)?.size;
    let of = |kinds: &[TotalType]| -> usize {
        let totals = info
            .total
            .iter()
            .filter(|total| kinds.contains(&total.r#type));
        totals.map(|total| total.size).sum()
    };
    let free = of(&[TotalType::Fast, TotalType::Rest]);
    // Large pieces have maps of their own.
    let allocated = arenas.saturating_sub(free) + of(&[TotalType::Mmap]);
    Some(Heap {
        allocated: allocated as u64,
        free: free as u64,
    })
}

/// The state of the allocator; `None` if it does not say.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn heap() -> Option<Heap> {
    None
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_allocated_is_counted_and_comes_back() {
        const MANY: u64 = 256 << 20;
        // Larger than anything that other tests allocate meanwhile.
        let before = heap().unwrap();
        let memory: Vec<u8> = Vec::with_capacity(MANY as usize);
        let with = heap().unwrap();
        drop(memory);
        let after = heap().unwrap();
        let grown = with.allocated.saturating_sub(before.allocated);
        assert!(grown > MANY / 2, "{before:?} {with:?}");
        assert!(
            after.allocated < with.allocated - MANY / 2,
            "{with:?} {after:?}"
        );
    }
}
