//! Buffers of floats aligned to cache lines, so that no vector of sixteen floats crosses two lines.

use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};

use super::GROUP;

/// A cache line of floats.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Line([f32; 16]);

/// The values of a group, on cache lines: `bytemuck::cast_mut` makes a `[f32; GROUP]` of it.
pub type GroupLines = [Line; GROUP / 16];

/// A buffer that grows to the largest length that was set, and keeps that memory.
#[derive(Clone, Default)]
pub struct Floats {
    lines: Vec<Line>,
    len: usize,
}

impl Floats {
    /// Sets the length to `len`; the values are unspecified.
    pub fn set_len(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(16);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line::zeroed());
        }
        self.len = len;
        self
    }

    /// Bytes of the buffer.
    pub const fn bytes(&self) -> usize {
        bytes(&self.lines)
    }
}

/// Bytes that a buffer takes, filled or not.
pub const fn bytes<T>(buffer: &Vec<T>) -> usize {
    buffer.capacity() * size_of::<T>()
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
