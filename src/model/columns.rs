//! Which rows of a checkpoint's tensors make which columns of a packed matrix, in both directions.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::int8::PANEL;
use crate::int8::matrix::CodeRows;
use crate::sources::Tensors;

/// Columns in each half of an interleaved panel.
const HALF: usize = PANEL / 2;

/// Consecutive rows of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// The tensor's name in the checkpoint.
    pub tensor: String,
    /// The number of all rows of the tensor.
    pub total: usize,
    /// The first row.
    pub first: usize,
    /// The number of rows.
    pub count: usize,
}

/// Consecutive rows of a tensor that are consecutive columns of a panel.
#[derive(Debug, PartialEq, Eq)]
struct Piece<'a> {
    tensor: &'a str,
    rows: Range<usize>,
    /// The first column within the panel.
    at: usize,
}

/// Which tensor rows make the columns of a packed matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Columns {
    /// All rows of the first, then of the second, and so on.
    Stacked(Vec<Rows>),
    /// Each panel has 32 rows of the first and 32 of the second of a pair; both have the same number of rows. The
    /// panels of one pair come after those of the pair before: experts are pairs.
    Interleaved(Vec<[Rows; 2]>),
}

impl Rows {
    /// All rows of a tensor that has `total`.
    pub fn all(tensor: String, total: usize) -> Self {
        Self {
            tensor,
            total,
            first: 0,
            count: total,
        }
    }

    /// The two halves of the rows of a tensor that has `total`.
    pub fn halves(tensor: String, total: usize) -> [Self; 2] {
        Self::all(tensor, total).in_halves()
    }

    /// The rows of a tensor that has `total`, in `count` equal parts.
    pub fn parts(tensor: String, total: usize, count: usize) -> Vec<Self> {
        let each = total / count;
        let part = |index| Self {
            tensor: tensor.clone(),
            total,
            first: index * each,
            count: each,
        };
        (0..count).map(part).collect()
    }

    /// The first and the second half of these rows.
    pub fn in_halves(self) -> [Self; 2] {
        let count = self.count / 2;
        [self.first, self.first + count].map(|first| Self {
            first,
            count,
            ..self.clone()
        })
    }

    /// Rows `from .. from + count` of these, or as many of them as exist, for the columns of a panel from `at` on.
    fn piece(&self, from: usize, count: usize, at: usize) -> Piece<'_> {
        let count = count.min(self.count - from);
        let first = self.first + from;
        Piece {
            tensor: &self.tensor,
            rows: first..first + count,
            at,
        }
    }
}

/// Columns that a pair makes, of whose halves `first` is one.
const fn padded_pair(first: &Rows) -> usize {
    first.count.div_ceil(HALF) * PANEL
}

impl Columns {
    /// All rows of one tensor.
    pub fn whole(tensor: String, total: usize) -> Self {
        Self::Stacked(vec![Rows::all(tensor, total)])
    }

    /// The rows, tensor by tensor.
    pub fn rows(&self) -> &[Rows] {
        match self {
            Self::Stacked(list) => list,
            Self::Interleaved(pairs) => pairs.as_flattened(),
        }
    }

    /// The tensors whose rows make the columns, once each, with their number of rows.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, usize)> {
        let rows = self.rows();
        let first_of_tensor = |&(index, one): &(usize, &Rows)| {
            rows[..index].iter().all(|other| other.tensor != one.tensor)
        };
        let firsts = rows.iter().enumerate().filter(first_of_tensor);
        firsts.map(|(_, rows)| (rows.tensor.as_str(), rows.total))
    }

    /// Columns of the packed matrix that hold weights.
    pub fn count(&self) -> usize {
        self.rows().iter().map(|rows| rows.count).sum()
    }

    /// Columns of the packed matrix, including padding. Interleaved halves are padded separately, so their last panel
    /// is complete.
    pub fn padded_count(&self) -> usize {
        match self {
            Self::Stacked(_) => self.count(),
            Self::Interleaved(pairs) => pairs.iter().map(|[first, _]| padded_pair(first)).sum(),
        }
    }

    /// Which rows make the columns of panel `panel`: the inverse of [`Columns::column`].
    fn pieces(&self, panel: usize) -> Vec<Piece<'_>> {
        match self {
            Self::Interleaved(pairs) => {
                let mut before = 0;
                for [first, second] in pairs {
                    let panels = padded_pair(first) / PANEL;
                    if panel < before + panels {
                        let from = (panel - before) * HALF;
                        return vec![first.piece(from, HALF, 0), second.piece(from, HALF, HALF)];
                    }
                    before += panels;
                }
                Vec::new()
            }
            Self::Stacked(list) => {
                let (mut pieces, mut before, mut filled) = (Vec::new(), 0, 0);
                for rows in list {
                    let next = panel * PANEL + filled;
                    if filled < PANEL && next < before + rows.count {
                        let piece = rows.piece(next - before, PANEL - filled, filled);
                        filled += piece.rows.len();
                        pieces.push(piece);
                    }
                    before += rows.count;
                }
                pieces
            }
        }
    }

    /// The column that row `row` of `tensor` becomes, if any.
    pub fn column(&self, tensor: &str, row: usize) -> Option<usize> {
        let mut before = 0;
        for (index, rows) in self.rows().iter().enumerate() {
            let offset = row.checked_sub(rows.first);
            let offset = offset.filter(|offset| *offset < rows.count && rows.tensor == tensor);
            match (self, offset) {
                (Self::Stacked(_), Some(offset)) => return Some(before + offset),
                (Self::Stacked(_), None) => before += rows.count,
                (Self::Interleaved(_), Some(offset)) => {
                    let half = index % 2;
                    return Some(before + offset / HALF * PANEL + half * HALF + offset % HALF);
                }
                (Self::Interleaved(_), None) => before += index % 2 * padded_pair(rows),
            }
        }
        None
    }

    /// Reads the rows of panel `panel` to `out`, `[64][depth]`.
    pub fn read(
        &self,
        tensors: &dyn Tensors,
        depth: usize,
        panel: usize,
        out: &mut [f32],
    ) -> Result<()> {
        self.pieces(panel).into_iter().try_for_each(|piece| {
            let Piece { tensor, rows, at } = piece;
            let out = &mut out[at * depth..][..rows.len() * depth];
            tensors.read_rows(tensor, rows, out)
        })
    }

    /// Reads the codes of panel `panel` to `out`, 64 rows of `depth`.
    pub fn read_codes(
        &self,
        tensors: &dyn Tensors,
        depth: usize,
        panel: usize,
        out: CodeRows<'_>,
    ) -> Result<()> {
        self.pieces(panel).into_iter().try_for_each(|piece| {
            let Piece { tensor, rows, at } = piece;
            let count = rows.len();
            let out = CodeRows {
                codes: &mut out.codes[at * depth..][..count * depth],
                scales: &mut out.scales[at..][..count],
                zero_points: &mut out.zero_points[at..][..count],
            };
            tensors.read_codes(tensor, rows, out)
        })
    }

    /// Whether the checkpoint stores these rows as codes.
    ///
    /// # Errors
    /// [`Error::BadModel`] if some tensors are codes and others are floats: the columns of one matrix must be of one
    /// kind.
    pub fn have_codes(&self, tensors: &dyn Tensors) -> Result<bool> {
        let (coded, plain): (Vec<&str>, Vec<&str>) = self
            .tensors()
            .map(|(name, _)| name)
            .partition(|name| tensors.has_codes(name));
        match (coded.first(), plain.first()) {
            (Some(coded), Some(plain)) => {
                let problem = format!("must be int8, as {coded} is, which it is multiplied with");
                Err(Error::bad_model(tensors.file(plain), plain, problem))
            }
            (coded, _) => Ok(coded.is_some()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stacked(counts: &[usize]) -> Columns {
        let rows = counts.iter().enumerate();
        let rows = rows.map(|(index, count)| Rows::all(format!("tensor {index}"), *count));
        Columns::Stacked(rows.collect())
    }

    #[test]
    fn rows_are_read_into_the_columns_that_they_are_said_to_make() {
        let interleaved = |width| {
            let halves = [
                Rows::all("gate".into(), width),
                Rows::all("up".into(), width),
            ];
            Columns::Interleaved(vec![halves])
        };
        let fused = Columns::Interleaved(vec![Rows::halves("gate and up".into(), 2 * 80)]);
        let experts = Rows::parts("experts".into(), 3 * 2 * 75, 3).into_iter();
        let experts = Columns::Interleaved(experts.map(Rows::in_halves).collect());
        let all = [
            (stacked(&[64]), 64),
            (stacked(&[100, 1, 30]), 131),
            (stacked(&[3, 200]), 203),
            (interleaved(32), 64),
            (interleaved(75), 192),
            (fused, 192),
            (experts, 3 * 192),
            (Columns::Stacked(Rows::parts("experts".into(), 300, 3)), 300),
        ];
        for (columns, padded) in all {
            assert_eq!(columns.padded_count(), padded);
            let mut made = 0;
            for panel in 0..padded.div_ceil(PANEL) {
                for Piece { tensor, rows, at } in columns.pieces(panel) {
                    for (row, column) in rows.zip(panel * PANEL + at..) {
                        assert_eq!(columns.column(tensor, row), Some(column), "{tensor} {row}");
                        made += 1;
                    }
                }
            }
            assert_eq!(made, columns.count(), "every row makes a column");
            for (tensor, total) in columns.tensors() {
                assert_eq!(columns.column(tensor, total), None);
            }
            assert_eq!(columns.column("another", 0), None);
        }
    }
}
