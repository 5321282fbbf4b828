//! The tile for 256-bit registers, shared by instruction sets that differ only in the instructions that multiply four
//! codes with four codes.

/// Defines a kernel's function `tile` from its features and three functions of its own: `start(sum) -> i32`, the
/// initial value of the accumulators for a row whose codes add up to `sum`; `prepare(weights)`, done once for all rows;
/// and `dot(sums, prepared, row)`, which adds eight sums of four products each.
///
/// `(rows, vectors)` are the shapes of a register tile, fewest rows first: its `rows · vectors` accumulators and the
/// operands of `dot` have to fit in 16 registers. A pass covers all rows of a register tile and `vectors · 8` of the 64
/// columns.
macro_rules! tile_256 {
    ($features:literal, shapes: [$(($rows:literal, $vectors:literal)),+]) => {
        /// # Safety
        /// `tile` was checked by [`Kernel::tile`], and the CPU has [`features`].
        #[target_feature(enable = $features)]
        unsafe fn tile(t: &Tile) {
            const ROWS_MAX: usize = {
                let shapes = [$($rows),+];
                shapes[shapes.len() - 1]
            };
            // More rows read the weights a few columns at a time, which processors do not foresee: without the prefetches a
            // step of two rows takes 2.5 times as long.
            let t = &if t.rows == 1 { t.unassisted() } else { *t };
            // Divide the rows into register tiles as evenly as possible: 5 rows are 3 + 2, not 4 + 1.
            let blocks = t.rows.div_ceil(ROWS_MAX);
            let (size, larger) = (t.rows / blocks, t.rows % blocks);
            let mut first = 0;
            for block in 0..blocks {
                let rows = size + usize::from(block < larger);
                // Each register tile prefetches its share of `ahead`: in each K-step as many bytes as a K-step of
                // weights has.
                let steps = t.ahead_len / (PANEL * 4);
                let ahead = (steps * block) / blocks..(steps * (block + 1)) / blocks;
                // SAFETY: rows `first .. first + rows` are within the tile; the caller guarantees the features.
                unsafe {
                    match rows {
                        $($rows => rows_block::<$rows, $vectors>(t, first, ahead),)+
                        _ => unreachable!("blocks are as large as the shapes"),
                    }
                }
                first += rows;
            }
        }

        /// Multiplies rows `first .. first + R` in passes of `V` vectors of eight columns.
        ///
        /// # Safety
        /// Those rows exist in the checked tile.
        #[target_feature(enable = $features)]
        unsafe fn rows_block<const R: usize, const V: usize>(
            t: &Tile,
            first: usize,
            ahead: std::ops::Range<usize>,
        ) {
            for column in (0..PANEL).step_by(8 * V) {
                // SAFETY: `Tile` guarantees the lengths of weights, codes and sums; prefetching needs no valid address.
                unsafe {
                    let codes = t.codes.add(first * t.stride);
                    let mut sums: [[__m256i; V]; R] =
                        std::array::from_fn(|r| [_mm256_set1_epi32(start(*t.sums.add(first + r))); V]);
                    for step in 0..t.steps {
                        let line = t.weights.add((step * PANEL + column) * 4);
                        if ahead.contains(&step) {
                            let next = t.ahead.wrapping_add((step * PANEL + column) * 4);
                            // The cache lines that begin in this pass: two vectors of eight columns make one line.
                            for j in (column % 16 / 8..V).step_by(2) {
                                _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(32 * j).cast());
                            }
                        }
                        let weights: [_; V] =
                            std::array::from_fn(|j| prepare(_mm256_loadu_si256(line.add(32 * j).cast())));
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let four = codes.add(r * t.stride + 4 * step).cast::<i32>().read_unaligned();
                            let four = _mm256_set1_epi32(four);
                            for j in 0..V {
                                sums[j] = dot(sums[j], weights[j], four);
                            }
                        }
                    }
                    for (r, row) in sums.into_iter().enumerate() {
                        finish(t, first + r, column, row);
                    }
                }
            }
        }

        /// Adds a row's sums to the output: corrects them where zero points differ from 128, converts them to floats
        /// and scales them.
        ///
        /// # Safety
        /// Row `row` and columns `column .. column + 8 · V` exist in the checked tile.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn finish<const V: usize>(t: &Tile, row: usize, column: usize, sums: [__m256i; V]) {
            // SAFETY: `Tile` guarantees one scale, one sum and 64 outputs per row, and 64 values behind pointers that
            // are not null.
            unsafe {
                let row_scale = _mm256_set1_ps(*t.scales.add(row));
                let out = t.out.add(row * PANEL + column);
                for (j, mut sum) in sums.into_iter().enumerate() {
                    let at = column + 8 * j;
                    if !t.zero_points.is_null() {
                        let zero_points = _mm_loadl_epi64(t.zero_points.add(at).cast());
                        let difference = _mm256_sub_epi32(
                            _mm256_set1_epi32(ZERO_POINT),
                            _mm256_cvtepu8_epi32(zero_points),
                        );
                        let row_sum = _mm256_set1_epi32(*t.sums.add(row));
                        sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(difference, row_sum));
                    }
                    let scale = if t.column_scales.is_null() {
                        row_scale
                    } else {
                        _mm256_mul_ps(row_scale, _mm256_loadu_ps(t.column_scales.add(at)))
                    };
                    let slot = out.add(8 * j);
                    let before = if t.accumulate {
                        _mm256_loadu_ps(slot)
                    } else {
                        _mm256_setzero_ps()
                    };
                    _mm256_storeu_ps(slot, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, before));
                }
            }
        }
    };
}
pub(super) use tile_256;
