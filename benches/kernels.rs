//! Measures every kernel of this CPU on the matrices of Granite 2B; `<--` marks the kernel that `serve` uses.
//!
//! `cargo bench --bench kernels` runs matrix multiplications on one thread and prints, for each shape and number of
//! rows, the median time, the weights read per second, the operations per second, and their share of the kernel's peak
//! rate in registers, measured in the same run.

use std::time::Instant;

use microgranite::int8::PANEL;
use microgranite::int8::activations::{Activations, groups_of};
use microgranite::int8::compute::Compute;
use microgranite::int8::kernels::pool::Pool;
use microgranite::int8::kernels::{Kernel, available};
use microgranite::int8::matrix::Matrix;
use microgranite::int8::rotation::Rotation;

/// Outputs and inputs of the four matrices of a Granite 2B layer.
const SHAPES: [(&str, usize, usize); 4] = [
    ("qkv", 3072, 2048),
    ("output", 2048, 2048),
    ("gate_up", 16_384, 2048),
    ("down", 2048, 8192),
];

/// One decoding stream, 8 rows (two register tiles with AVX-512), a full batch, and a prompt chunk.
const ROWS: [usize; 4] = [1, 8, 16, 256];

/// Runs of each measurement; the median is printed.
const RUNS: usize = 7;

/// The scalar kernel is the reference and slow: it is measured only with one row of this matrix, the smallest.
const SCALAR_SHAPE: &str = "output";

fn main() {
    let mut pool = Pool::new(1).unwrap();
    let chosen = available()[0].name();
    println!(
        "matrix   kernel        rows        ms      GB/s      TOPS   share of arithmetic peak"
    );
    for (name, columns, depth) in SHAPES {
        let matrix = Matrix::random(columns, depth, &mut pool).unwrap();
        for kernel in available() {
            for rows in ROWS {
                if kernel.name() == "scalar" && (name != SCALAR_SHAPE || rows > 1) {
                    continue;
                }
                let mark = if kernel.name() == chosen { "<--" } else { "" };
                println!(
                    "{name:<8} {:<12} {} {mark}",
                    kernel.name(),
                    measure(kernel, &matrix, rows)
                );
            }
        }
    }
}

/// Times one matrix multiplication and formats the result.
fn measure(kernel: Kernel, matrix: &Matrix, rows: usize) -> String {
    let mut compute = Compute::with_kernel(kernel, 1).unwrap();
    let input = activations(kernel, rows, matrix.depth());
    let mut out = vec![0.0; matrix.panels() * rows * PANEL];
    let mut times = Vec::new();
    let mut peaks = Vec::new();
    for _ in 0..RUNS {
        let start = Instant::now();
        compute.multiply(matrix, &input, &mut out);
        times.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let operations = kernel.int8_arithmetic(1 << 18);
        peaks.push(operations as f64 / start.elapsed().as_secs_f64());
    }
    let (seconds, peak) = (median(times), median(peaks));
    let operations = 2.0 * (matrix.columns() * matrix.depth() * rows) as f64;
    format!(
        "{rows:>5} {:>9.3} {:>9.1} {:>9.3} {:>8.0} %",
        seconds * 1e3,
        matrix.bytes().codes as f64 / seconds / 1e9,
        operations / seconds / 1e12,
        operations / seconds / peak * 100.0
    )
}

/// Rows of a sine wave, which covers every code.
fn activations(kernel: Kernel, rows: usize, width: usize) -> Activations {
    let mut input = Activations::new(rows, width);
    let groups = input.groups();
    let mut pool = Pool::new(1).unwrap();
    pool.run(groups, input.by_group(), |_, _, parts| {
        for (index, group) in groups_of(rows, parts).enumerate() {
            group.fill(kernel, Rotation::Full, 256, |row, values| {
                for (i, value) in values.iter_mut().enumerate() {
                    *value = ((index + row) as f32 + i as f32 * 0.7).sin();
                }
            });
        }
    });
    input
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
