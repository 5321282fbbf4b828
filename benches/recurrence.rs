//! Measures the recurrence of Mamba-2 layers of Granite hybrids on every kernel of this CPU.
//!
//! `cargo bench --bench recurrence` runs the heads of layers on one thread. It prints the median time for a layer, and
//! the median share of the limit that counts, measured beside each run: for a prompt, the rate of f32 instructions in
//! registers, of which each element of a state takes three for a row; for one row, the rate at which states are read
//! and written when each value is only multiplied. Those states do not fit the caches.

use std::ops::Range;
use std::time::Instant;

use microgranite::int8::PANEL;
use microgranite::int8::kernels::{Kernel, Scan, available};

/// Heads of a layer and columns of a head.
const SHAPES: [(&str, usize, usize); 2] = [("h-350m", 48, 32), ("h-1b", 48, 64)];

/// Rows of a head's state.
const STATE: usize = 128;

/// A prompt chunk and one decoding stream.
const ROWS: [usize; 2] = [256, 1];

/// Bytes of states, for one row: several times the caches of current servers.
const STATE_BYTES: usize = 256 << 20;

/// Runs of each measurement; medians are printed.
const RUNS: usize = 15;

fn main() {
    println!("shape    kernel        rows   ms per layer   limit          share");
    for (name, heads, width) in SHAPES {
        for kernel in available().into_iter().filter(|k| k.name() != "scalar") {
            for rows in ROWS {
                println!(
                    "{name:<8} {:<12} {rows:>5} {}",
                    kernel.name(),
                    measure(kernel, heads, width, rows)
                );
            }
        }
    }
}

/// Times the layers of a step and formats the result.
fn measure(kernel: Kernel, heads: usize, width: usize, rows: usize) -> String {
    let layer = heads * STATE * width;
    let layers = match rows {
        1 => STATE_BYTES / (4 * layer),
        _ => 1,
    };
    let (mut states, mut x) = (wave(layers * layer), wave(heads * width * rows));
    let (b, c) = (wave(STATE * rows), wave(STATE * rows));
    let (steps, decays) = (vec![0.02; rows], vec![0.98; rows]);
    let (mut times, mut shares) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let start = Instant::now();
        let limit = if rows == 1 {
            kernel.scale(&mut states.0[states.1.clone()], 0.999);
            start.elapsed().as_secs_f64()
        } else {
            // A multiply-add counts as two operations and is one instruction.
            let operations = kernel.f32_arithmetic(1 << 20) as f64;
            let instructions = operations / 2.0 / start.elapsed().as_secs_f64();
            let lanes = 3.0 * (layers * layer * rows) as f64;
            lanes / instructions
        };
        let start = Instant::now();
        let states = states.0[states.1.clone()].chunks_exact_mut(STATE * width);
        for (i, state) in states.enumerate() {
            let column = i % heads * width;
            let x = &mut x.0[x.1.clone()];
            kernel.scan(Scan {
                state,
                width,
                x: &mut x[column / PANEL * PANEL * rows + column % PANEL..],
                b: &b.0[b.1.clone()],
                c: &c.0[c.1.clone()],
                panel_stride: PANEL * rows,
                steps: &steps,
                decays: &decays,
                skip: 0.5,
            });
        }
        let time = start.elapsed().as_secs_f64();
        times.push(time / layers as f64);
        shares.push(limit / time);
    }
    format!(
        "{:>12.3}   {:<12} {:>5.0} %",
        median(times) * 1e3,
        if rows == 1 { "memory" } else { "arithmetic" },
        median(shares) * 100.0
    )
}

/// A sine wave, and the part of the vector that starts on a cache line, as buffers of the model do.
fn wave(len: usize) -> (Vec<f32>, Range<usize>) {
    let values: Vec<f32> = (0..len + 16).map(|i| (i as f32 * 0.7).sin()).collect();
    let start = values.as_ptr().align_offset(64);
    (values, start..start + len)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
