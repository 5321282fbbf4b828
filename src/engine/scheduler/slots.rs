//! The slots of those who run.

/// Which slots are taken.
#[derive(Debug)]
pub(super) struct Slots {
    taken: Vec<bool>,
}

impl Slots {
    /// `count` free slots.
    pub(super) fn new(count: usize) -> Self {
        Self {
            taken: vec![false; count],
        }
    }

    /// Takes the lowest free slot: what a model keeps for slots that were never needed stays untouched, and costs no
    /// resident memory.
    pub(super) fn take(&mut self) -> u32 {
        let free = self.taken.iter().position(|taken| !taken);
        let slot = free.expect("no more generations run than there are slots");
        self.taken[slot] = true;
        slot as u32
    }

    /// Frees a slot.
    pub(super) fn give_back(&mut self, slot: u32) {
        self.taken[slot as usize] = false;
    }
}
