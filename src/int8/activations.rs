//! Rows of activations, quantized.

use bytemuck::Zeroable;

use super::GROUP;
use super::floats::{GroupLines, bytes};
use super::kernels::pool::PerUnit;
use super::kernels::{Kernel, Rows};
use super::rotation::Rotation;

/// Quantized rows in group-major order, so that threads can fill different groups at the same time.
///
/// `codes` is `[groups][rows][256]`, `scales` and `sums` are `[groups][rows]`; K is padded to whole groups with zeros.
#[derive(Debug)]
pub struct Activations {
    rows: usize,
    width: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

/// One group of all rows, to be filled.
pub struct GroupMut<'a> {
    /// `[rows][256]`.
    pub codes: &'a mut [[i8; GROUP]],
    /// One scale per row.
    pub scales: &'a mut [f32],
    /// The sum of each row's codes.
    pub sums: &'a mut [i32],
}

impl GroupMut<'_> {
    /// Fills the group of all rows: `produce(row, values)` writes the `width` values of a row, which are rotated by
    /// `rotation` and quantized.
    pub fn fill(
        self,
        kernel: Kernel,
        rotation: Rotation,
        width: usize,
        produce: impl Fn(usize, &mut [f32]),
    ) {
        let mut lines = GroupLines::zeroed();
        let values: &mut [f32; GROUP] = bytemuck::cast_mut(&mut lines);
        for (row, codes) in self.codes.iter_mut().enumerate() {
            produce(row, &mut values[..width]);
            values[width..].fill(0.0);
            (self.scales[row], self.sums[row]) =
                kernel.quantize_group(rotation, values, width, codes);
        }
    }
}

impl Activations {
    /// Allocates `rows` rows of `width` values.
    pub fn new(rows: usize, width: usize) -> Self {
        let groups = width.div_ceil(GROUP);
        Self {
            rows,
            width,
            codes: vec![0; groups * rows * GROUP],
            scales: vec![0.0; groups * rows],
            sums: vec![0; groups * rows],
        }
    }

    /// Sets the number of rows for the next use; the content is then unspecified. Memory grows only beyond the largest
    /// number so far.
    pub(crate) fn set_rows(&mut self, rows: usize) {
        let groups = self.groups();
        self.rows = rows;
        if self.scales.len() < groups * rows {
            self.codes.resize(groups * rows * GROUP, 0);
            self.scales.resize(groups * rows, 0.0);
            self.sums.resize(groups * rows, 0);
        }
    }

    /// Bytes of the buffers.
    pub(crate) const fn bytes(&self) -> usize {
        bytes(&self.codes) + bytes(&self.scales) + bytes(&self.sums)
    }

    /// Number of rows.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Number of values of each row, without padding.
    pub const fn width(&self) -> usize {
        self.width
    }

    /// Number of groups.
    pub const fn groups(&self) -> usize {
        self.width.div_ceil(GROUP)
    }

    /// How many values of group `group` are not padding.
    pub const fn group_width(&self, group: usize) -> usize {
        let left = self.width - group * GROUP;
        if left < GROUP { left } else { GROUP }
    }

    /// Group `group` of all rows.
    #[inline]
    pub fn group(&self, group: usize) -> Rows<'_> {
        let range = group * self.rows..(group + 1) * self.rows;
        Rows {
            codes: &self.codes[range.start * GROUP..range.end * GROUP],
            stride: GROUP,
            scales: &self.scales[range.clone()],
            sums: &self.sums[range],
        }
    }

    /// The arrays as parts of one unit per group, for [`super::kernels::pool::Pool::run`].
    pub fn by_group(&mut self) -> GroupParts<'_> {
        self.by_groups(1)
    }

    /// The arrays as parts of one unit per `groups` groups.
    pub(crate) fn by_groups(&mut self, groups: usize) -> GroupParts<'_> {
        let values = groups * self.rows;
        (
            PerUnit::new(&mut self.codes, values * GROUP),
            PerUnit::new(&mut self.scales, values),
            PerUnit::new(&mut self.sums, values),
        )
    }
}

/// Codes, scales and sums, to be divided among threads.
pub type GroupParts<'a> = (PerUnit<'a, i8>, PerUnit<'a, f32>, PerUnit<'a, i32>);

/// A thread's shares of [`GroupParts`].
pub type GroupShares<'a> = (&'a mut [i8], &'a mut [f32], &'a mut [i32]);

/// The shares of [`Activations::by_group`] as groups.
pub fn groups_of<'a>(
    rows: usize,
    (codes, scales, sums): GroupShares<'a>,
) -> impl Iterator<Item = GroupMut<'a>> {
    let codes: &mut [[i8; GROUP]] = bytemuck::cast_slice_mut(codes);
    codes
        .chunks_exact_mut(rows)
        .zip(scales.chunks_exact_mut(rows))
        .zip(sums.chunks_exact_mut(rows))
        .map(|((codes, scales), sums)| GroupMut {
            codes,
            scales,
            sums,
        })
}
