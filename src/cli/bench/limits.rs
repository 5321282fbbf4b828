//! The machine's limits, measured between the timed steps.

use crate::error::Result;
use crate::int8::compute::rate;
use crate::int8::kernels::Kernel;
use crate::int8::kernels::pool::Pool;
use crate::int8::memory::Memory;

/// Bytes to read: several times the largest last-level cache of current servers' core complexes, so that the reads
/// reach memory.
const READ_BYTES: usize = 512 << 20;

/// Rounds of arithmetic: they take some milliseconds at 2 instructions per cycle.
const ROUNDS: u64 = 1 << 20;

/// The peak rates of all threads together.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes read per second.
    pub read: f64,
    /// Int8 operations per second.
    pub int8: f64,
    /// F32 operations per second.
    pub f32: f64,
}

impl Limits {
    /// The mean of each.
    pub fn mean(self, other: Self) -> Self {
        Self {
            read: f64::midpoint(self.read, other.read),
            int8: f64::midpoint(self.int8, other.int8),
            f32: f64::midpoint(self.f32, other.f32),
        }
    }
}

/// Measures the limits repeatedly, on the same buffer.
pub struct Meter {
    buffer: Memory,
}

impl Meter {
    /// Allocates and touches the buffer.
    ///
    /// # Errors
    /// [`crate::error::Error::Config`] if there is no memory for it.
    pub fn new() -> Result<Self> {
        let mut buffer = Memory::zeroed(READ_BYTES)?;
        // Written to, so that it is real memory and not the system's one page of zeros.
        buffer.bytes_mut().fill(1);
        Ok(Self { buffer })
    }

    /// One measurement of each limit.
    pub fn measure(&self, kernel: Kernel, pool: &mut Pool) -> Limits {
        let shares = |thread: usize, threads: usize| {
            let of = |index: usize| READ_BYTES / threads * index;
            &self.buffer.bytes()[of(thread)..of(thread + 1)]
        };
        let threads = pool.threads();
        Limits {
            read: rate(pool, |thread| kernel.read(shares(thread, threads))),
            int8: rate(pool, |_| kernel.int8_arithmetic(ROUNDS)),
            f32: rate(pool, |_| kernel.f32_arithmetic(ROUNDS)),
        }
    }
}

/// The middle value; the mean of the two middle ones for an even count.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        (values[middle - 1] + values[middle]) / 2.0
    }
}
