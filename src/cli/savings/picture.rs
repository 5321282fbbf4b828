//! Draws what int8 takes beside f32, as bars.

use plotters::prelude::*;

use crate::cli::figures::significant;
use crate::config::ByteSize;
use crate::error::{Error, Result};
use crate::model::packed::SavingsRecord;

const WIDTH: u32 = 960;
const TOP: i32 = 92;
/// Of the two bars of a measure, and the space below them.
const ROW: i32 = 62;
const BAR: i32 = 20;
const LEFT: i32 = 220;
const RIGHT: i32 = 760;

/// Colours that remain distinct for colour-blind readers and on paper (Okabe and Ito's).
const INT8: RGBColor = RGBColor(0, 114, 178);
const F32: RGBColor = RGBColor(230, 159, 0);

/// A measure: its name, both values and how they are written.
struct Bars {
    name: &'static str,
    values: [f64; 2],
    written: [String; 2],
}

impl Bars {
    fn new(name: &'static str, values: [f64; 2], write: impl Fn(f64) -> String) -> Self {
        Self {
            name,
            written: values.map(write),
            values,
        }
    }
}

/// Draws the measurement; returns SVG. Of each pair of bars the longer one fills the width.
///
/// # Errors
/// [`Error::Internal`] if drawing fails, which does not happen in memory.
pub fn draw(record: &SavingsRecord) -> Result<String> {
    let mut svg = String::new();
    draw_on(&mut svg, record).map_err(|e| Error::Internal(e.to_string()))?;
    Ok(svg)
}

fn bars(record: &SavingsRecord) -> Vec<Bars> {
    let (int8, f32) = (&record.int8, &record.f32);
    let size = |value: f64| ByteSize(value as u64).to_string();
    let seconds = |value: f64| format!("{} s", significant(value, 3));
    let rate = |value: f64| format!("{}/s", significant(value, 3));
    let mut all = vec![
        Bars::new(
            "resident memory",
            [int8.resident_bytes as f64, f32.resident_bytes as f64],
            size,
        ),
        Bars::new(
            "peak memory",
            [int8.peak_bytes as f64, f32.peak_bytes as f64],
            size,
        ),
        Bars::new(
            "ready after",
            [int8.ready_seconds, f32.ready_seconds],
            seconds,
        ),
        Bars::new(
            "processor time",
            [int8.cpu_seconds, f32.cpu_seconds],
            seconds,
        ),
        Bars::new(
            "prompt tokens",
            [
                int8.prefill_tokens_per_second,
                f32.prefill_tokens_per_second,
            ],
            rate,
        ),
        Bars::new(
            "generated tokens",
            [int8.decode_tokens_per_second, f32.decode_tokens_per_second],
            rate,
        ),
    ];
    if let (Some(int8), Some(f32)) = (int8.joules_per_token, f32.joules_per_token) {
        let joules = |value: f64| format!("{} J", significant(value, 3));
        all.push(Bars::new("energy per token", [int8, f32], joules));
    }
    all
}

fn draw_on(
    svg: &mut String,
    record: &SavingsRecord,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let bars = bars(record);
    let height = TOP + ROW * bars.len() as i32 + 8;
    let root = SVGBackend::with_string(svg, (WIDTH, height as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let text = |size: i32| {
        ("sans-serif", size)
            .into_font()
            .color(&RGBColor(40, 40, 40))
    };
    let title = format!("{}: what int8 saves, measured", record.model);
    root.draw_text(&title, &text(22), (24, 16))?;
    let note = format!(
        "{} threads, {} beside f32; mean divergence {} nats",
        record.threads,
        record.kernel,
        significant(record.kl_mean, 3)
    );
    root.draw_text(&note, &text(14), (24, 46))?;
    for (x, name, colour) in [(LEFT, "int8", INT8), (LEFT + 90, "f32", F32)] {
        let box_of = [(x, TOP - 22), (x + 14, TOP - 8)];
        root.draw(&Rectangle::new(box_of, colour.filled()))?;
        root.draw_text(name, &text(14), (x + 20, TOP - 22))?;
    }
    for (row, measure) in (0..).zip(&bars) {
        let y = TOP + ROW * row;
        root.draw_text(measure.name, &text(15), (24, y + BAR - 7))?;
        let most = measure.values[0]
            .max(measure.values[1])
            .max(f64::MIN_POSITIVE);
        let both = measure.values.iter().zip(&measure.written);
        for ((value, written), (y, colour)) in both.zip([(y, INT8), (y + BAR + 3, F32)]) {
            let end = LEFT + (value / most * f64::from(RIGHT - LEFT)).round().max(1.0) as i32;
            root.draw(&Rectangle::new(
                [(LEFT, y), (end, y + BAR)],
                colour.filled(),
            ))?;
            root.draw_text(written, &text(14), (end + 8, y + 3))?;
        }
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_share() {
        let svg = draw(&SavingsRecord::example()).unwrap();
        for part in [
            "<svg",
            "</svg>",
            "resident memory",
            "100 MiB",
            "400 MiB",
            "m: what int8 saves",
        ] {
            assert!(svg.contains(part), "{part} in {svg}");
        }
        assert!(!svg.contains("energy"), "{svg}");
        let quarter = format!("width=\"{}\"", (RIGHT - LEFT) / 4);
        assert!(svg.contains(&quarter), "{quarter} in {svg}");
        let mut record = SavingsRecord::example();
        (record.int8.joules_per_token, record.f32.joules_per_token) = (Some(0.5), Some(1.0));
        assert!(draw(&record).unwrap().contains("0.500 J"));
    }
}
