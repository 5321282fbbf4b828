//! The vector functions of a Mamba-2 mixer: step sizes, convolution, recurrence and gate.
//!
//! Rows are panel-major: a panel is 64 columns wide, and its row `t` starts at `t · 64`. Rows are consecutive tokens of
//! one sequence. What precedes them is in a window or a state, so a sequence may be cut into calls anywhere: the order
//! of every element's operations is fixed, and the bits do not depend on the cuts.

use super::super::PANEL;
use super::Kernel;
use super::math::{exp, silu};

/// Rows that a convolution reads: the row itself and those before it.
const TAPS: usize = 4;

/// Rows before the first one that a convolution reads.
const EARLIER: usize = TAPS - 1;

/// Consecutive rows of one head, and the state that they continue: what [`Kernel::scan`] works on.
#[derive(Debug)]
pub struct Scan<'a> {
    /// `[state size][width]`: the state before the first row, which becomes the state after the last one.
    pub state: &'a mut [f32],
    /// Columns of the head: 16, 32 or 64.
    pub width: usize,
    /// The inputs, row `t` at `t · 64 .. t · 64 + width`; they become the outputs.
    pub x: &'a mut [f32],
    /// What enters the state: value `n` of row `t` is at `(n / 64) · panel_stride + t · 64 + n % 64`.
    pub b: &'a [f32],
    /// What is read from the state, laid out like `b`.
    pub c: &'a [f32],
    /// Distance between the panels of `b` and of `c`.
    pub panel_stride: usize,
    /// The step size of each row.
    pub steps: &'a [f32],
    /// The factor by which each row shrinks the state.
    pub decays: &'a [f32],
    /// The share of the input that is added to the output.
    pub skip: f32,
}

impl Kernel {
    /// `steps = softplus(steps + bias)`, then `decays = exp(rate · steps)`.
    #[inline]
    pub fn discretize(&self, steps: &mut [f32], decays: &mut [f32], bias: f32, rate: f32) {
        assert_eq!(steps.len(), decays.len());
        // SAFETY: `self` proves the CPU features.
        unsafe { (self.recurrence.discretize)(steps, decays, bias, rate) }
    }

    /// A convolution down each column and its activation, in place: with `u` the rows as they come,
    /// `rows[t][c] = silu(bias[c] + Σ_j taps[j][c] · u[t − 3 + j][c])`, fused and with `j` ascending from 0 to 3.
    ///
    /// `rows` is `[rows][64]`, `taps` `[4][64]`. `window`, `[3][64]`, holds the `u` before the first row, oldest first,
    /// and then the last three `u`.
    #[inline]
    pub fn conv_silu(
        &self,
        window: &mut [f32],
        rows: &mut [f32],
        taps: &[f32],
        bias: &[f32; PANEL],
    ) {
        assert!(rows.len().is_multiple_of(PANEL));
        let (window, taps) = (window.try_into(), taps.try_into());
        let (window, taps) = (window.expect("three rows"), taps.expect("four taps"));
        // SAFETY: `self` proves the CPU features.
        unsafe { (self.recurrence.conv_silu)(window, rows, taps, bias) }
    }

    /// The recurrence of a head. For each row `t` in order, with `n` ascending and `y` from 0:
    ///
    /// ```text
    /// state[n][p] = fma(steps[t] · x[t][p], b[t][n], state[n][p] · decays[t])
    /// y[p] = fma(state[n][p], c[t][n], y[p])
    /// ```
    ///
    /// and then `x[t][p] = fma(skip, x[t][p], y[p])`.
    #[inline]
    pub fn scan(&self, scan: Scan<'_>) {
        let rows = scan.steps.len();
        assert!(
            matches!(scan.width, 16 | 32 | 64)
                && scan.decays.len() == rows
                && scan.state.len().is_multiple_of(scan.width * PANEL)
        );
        let panels = scan.state.len() / (scan.width * PANEL);
        if rows == 0 || panels == 0 {
            return;
        }
        // Checked arithmetic: a product that wraps around would let reads run past the end.
        let before = (rows - 1).checked_mul(PANEL).expect("rows fit in memory");
        let last = (panels - 1).checked_mul(scan.panel_stride);
        let needed = last.and_then(|last| last.checked_add(before)?.checked_add(PANEL));
        assert!(
            needed.is_some_and(|needed| scan.b.len() >= needed && scan.c.len() >= needed)
                && (scan.x.len().checked_sub(before)).is_some_and(|last| last >= scan.width),
            "rows are shorter than the scan"
        );
        // SAFETY: `self` proves the CPU features.
        unsafe { (self.recurrence.scan)(scan) }
    }

    /// `values *= silu(gates)`.
    #[inline]
    pub fn gate(&self, values: &mut [f32], gates: &[f32]) {
        assert_eq!(values.len(), gates.len());
        // SAFETY: `self` proves the CPU features.
        unsafe { (self.recurrence.gate)(values, gates) }
    }
}

for_each_instruction_set! {
    discretize(steps: &mut [f32], decays: &mut [f32], bias: f32, rate: f32);
    conv_silu(window: &mut [f32; EARLIER * PANEL], rows: &mut [f32], taps: &[f32; TAPS * PANEL], bias: &[f32; PANEL]);
    scan(scan: Scan<'_>);
    gate(values: &mut [f32], gates: &[f32]);
}

#[inline(always)]
fn discretize(steps: &mut [f32], decays: &mut [f32], bias: f32, rate: f32) {
    for (step, decay) in steps.iter_mut().zip(decays) {
        *step = softplus(*step + bias);
        *decay = exp(rate * *step);
    }
}

#[inline(always)]
fn conv_silu(
    window: &mut [f32; EARLIER * PANEL],
    rows: &mut [f32],
    taps: &[f32; TAPS * PANEL],
    bias: &[f32; PANEL],
) {
    /// Row `index` of the window, continued by `rows`.
    #[inline(always)]
    fn row<'a>(window: &'a [f32], rows: &'a [f32], index: usize) -> &'a [f32; PANEL] {
        let (rows, at) = match index.checked_sub(EARLIER) {
            Some(at) => (rows, at),
            None => (window, index),
        };
        rows[at * PANEL..][..PANEL].try_into().expect("a row")
    }
    let count = rows.len() / PANEL;
    let mut last = [0.0; EARLIER * PANEL];
    for (i, kept) in last.chunks_exact_mut(PANEL).enumerate() {
        kept.copy_from_slice(row(window, rows, count + i));
    }
    // From the last row to the first one: a row needs those before it as they came.
    for t in (0..count).rev() {
        let (before, current) = rows.split_at_mut(t * PANEL);
        let current: &mut [f32; PANEL] = (&mut current[..PANEL]).try_into().expect("a row");
        // The sums are a variable of their own, so that the compiler knows that storing one changes no operand.
        let mut sums = *bias;
        for j in 0..TAPS {
            let input = match j {
                EARLIER => &*current,
                _ => row(window, before, t + j),
            };
            for column in 0..PANEL {
                sums[column] = taps[j * PANEL + column].mul_add(input[column], sums[column]);
            }
        }
        for column in 0..PANEL {
            current[column] = silu(sums[column]);
        }
    }
    *window = last;
}

#[inline(always)]
fn scan(scan: Scan<'_>) {
    match scan.width {
        16 => scan_columns::<16>(scan),
        32 => scan_columns::<32>(scan),
        _ => scan_columns::<64>(scan),
    }
}

/// [`Kernel::scan`] for heads of `W` columns, one row after the other.
#[inline(always)]
pub(super) fn scan_columns<const W: usize>(scan: Scan<'_>) {
    for (t, (&step, &decay)) in scan.steps.iter().zip(scan.decays).enumerate() {
        let x: &mut [f32; W] = (&mut scan.x[t * PANEL..][..W])
            .try_into()
            .expect("the head's columns");
        let entering: [f32; W] = std::array::from_fn(|p| step * x[p]);
        let mut y = [0.0f32; W];
        for (panel, states) in scan.state.chunks_exact_mut(PANEL * W).enumerate() {
            let at = panel * scan.panel_stride + t * PANEL;
            let (b, c) = (&scan.b[at..][..PANEL], &scan.c[at..][..PANEL]);
            for ((state, b), c) in states.chunks_exact_mut(W).zip(b).zip(c) {
                for p in 0..W {
                    state[p] = entering[p].mul_add(*b, state[p] * decay);
                    y[p] = state[p].mul_add(*c, y[p]);
                }
            }
        }
        for p in 0..W {
            x[p] = scan.skip.mul_add(x[p], y[p]);
        }
    }
}

#[inline(always)]
fn gate(values: &mut [f32], gates: &[f32]) {
    for (value, gate) in values.iter_mut().zip(gates) {
        *value *= silu(*gate);
    }
}

/// `ln(1 + eˣ)`, which is `max(x, 0) + ln(1 + e^−|x|)`: the exponential cannot overflow, and for large negative x the
/// result is eˣ and not 0.
#[inline(always)]
fn softplus(x: f32) -> f32 {
    let positive = if x > 0.0 { x } else { 0.0 };
    positive + ln_1p(exp(-x.abs()))
}

/// 1/(2k + 1) from 7 down to 1.
const LN_1P_COEFFICIENTS: [f32; 7] = [
    1.0 / 15.0,
    1.0 / 13.0,
    1.0 / 11.0,
    1.0 / 9.0,
    1.0 / 7.0,
    1.0 / 5.0,
    1.0 / 3.0,
];

/// ln(1 + x) for x in 0…1, to about two units in the last place of the result, however small it is.
///
/// With `s = x / (2 + x)`, at most 1/3, it is `2·artanh(s) = 2s·(1 + s²/3 + s⁴/5 + …)`. The terms left out are below
/// s¹⁶/17 · 9/8, relatively 2·10⁻⁹.
#[inline(always)]
fn ln_1p(x: f32) -> f32 {
    let s = x / (2.0 + x);
    let (twice, square) = (2.0 * s, s * s);
    let [first, rest @ ..] = LN_1P_COEFFICIENTS;
    let series = rest
        .into_iter()
        .fold(first, |sum, coefficient| square.mul_add(sum, coefficient));
    (twice * square).mul_add(series, twice)
}
