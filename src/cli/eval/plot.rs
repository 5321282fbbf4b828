//! Draws the error of each layer's weights.

use std::collections::BTreeMap;

use plotters::prelude::*;

use super::report::{Evaluated, Report};
use crate::error::{Error, Result};
use crate::study::weight_error::TensorError;

/// Wide enough for 40 layers, and readable when scaled down to half a page.
const SIZE: (u32, u32) = (960, 540);

/// Colours that remain distinct for colour-blind readers and on paper (Okabe and Ito's, without yellow).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(60, 60, 60),
];

/// Draws the relative error of the matrices by layer; returns SVG. With one model there is a line for each kind of
/// matrix; with several there is one for each model, the root mean square over the matrices of a layer.
///
/// # Errors
/// [`Error::Internal`] if drawing fails, which does not happen in memory.
pub fn draw(models: &[Evaluated]) -> Result<String> {
    let drawing = match models {
        [one] => Drawing::of_one(&one.model, &one.tensors),
        several => {
            let models = several.iter();
            let models = models.map(|one| (one.model.as_str(), one.tensors.as_slice()));
            Drawing::of_several(&models.collect::<Vec<_>>())
        }
    };
    let mut svg = String::new();
    draw_on(&mut svg, &drawing).map_err(|e| Error::Internal(e.to_string()))?;
    Ok(svg)
}

/// The content of the drawing.
struct Drawing {
    title: String,
    note: String,
    /// Lines of `(layer, error in percent)`, by their names in the legend.
    lines: BTreeMap<String, Vec<(usize, f64)>>,
}

impl Drawing {
    fn of_one(model: &str, tensors: &[TensorError]) -> Self {
        let (blocks, others) = by_kind(tensors);
        let others: Vec<String> = (others.iter())
            .map(|(name, percent)| format!("{name} {percent:.2} %"))
            .collect();
        Self {
            title: format!("{model}: what int8 changed in the weights"),
            note: format!(
                "root mean square of the error over that of the weights; outside the layers: {}",
                others.join(", ")
            ),
            lines: blocks,
        }
    }

    /// A line for each of several named models.
    fn of_several(models: &[(&str, &[TensorError])]) -> Self {
        let names: Vec<String> = (models.iter().enumerate())
            .map(|(index, (name, _))| format!("{}: {name}", Report::letter(index)))
            .collect();
        let line = |(_, tensors): &(&str, &[TensorError])| {
            let mut layers: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
            for (layer, percent) in by_kind(tensors).0.into_values().flatten() {
                layers.entry(layer).or_default().push(percent);
            }
            let mean = |errors: Vec<f64>| {
                let squares: f64 = errors.iter().map(|error| error * error).sum();
                (squares / errors.len() as f64).sqrt()
            };
            let points = layers.into_iter();
            points
                .map(|(layer, errors)| (layer, mean(errors)))
                .collect()
        };
        let letters = (0..models.len()).map(Report::letter);
        Self {
            title: "what int8 changed in the weights".into(),
            note: format!(
                "root mean square of the relative errors of a layer's matrices; {}",
                names.join(", ")
            ),
            lines: letters.zip(models.iter().map(line)).collect(),
        }
    }
}

/// `(layer, error in percent)` of each kind of matrix in a layer, and `(name, error in percent)` of the other matrices.
type Errors = (BTreeMap<String, Vec<(usize, f64)>>, Vec<(String, f64)>);

fn by_kind(tensors: &[TensorError]) -> Errors {
    let (mut blocks, mut others) = Errors::default();
    for error in tensors {
        let percent = 100.0 * error.relative_error;
        let name = error.tensor.trim_end_matches(".weight");
        let kind = name.rsplit('.').next().unwrap_or(name);
        // A shared layer has an `input_linear` as well.
        let kind = match name.contains(".block_sparse_moe.") {
            true => format!("expert {kind}"),
            false => kind.to_owned(),
        };
        match error.layer {
            Some(layer) => blocks.entry(kind).or_default().push((layer, percent)),
            None => others.push((kind, percent)),
        }
    }
    blocks
        .values_mut()
        .for_each(|line| line.sort_by_key(|point| point.0));
    (blocks, others)
}

fn draw_on(
    svg: &mut String,
    drawing: &Drawing,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let points = || drawing.lines.values().flatten();
    let layers = points().map(|point| point.0).max().unwrap_or(0);
    let most = points().map(|point| point.1).fold(0.0, f64::max);
    // Leaves room above the highest point; a model with unchanged codes has no error to scale by.
    let top = if most > 0.0 { 1.15 * most } else { 1.0 };
    // One layer is a point, and needs an axis around it.
    let right = layers.max(1) as f64;

    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let text = |size: i32| {
        ("sans-serif", size)
            .into_font()
            .color(&RGBColor(40, 40, 40))
    };
    root.draw_text(&drawing.title, &text(22), (24, 16))?;
    root.draw_text(&drawing.note, &text(14), (24, 46))?;
    let (plot, legend) = root.margin(76, 8, 12, 12).split_horizontally(SIZE.0 - 200);

    let mut chart = ChartBuilder::on(&plot)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(-0.02 * right..1.02 * right, 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(RGBColor(225, 225, 225))
        .light_line_style(TRANSPARENT)
        .axis_style(RGBColor(150, 150, 150))
        .x_labels((layers + 1).clamp(2, 11))
        .x_label_formatter(&|layer| {
            if layer.fract() == 0.0 {
                format!("{layer:.0}")
            } else {
                String::new()
            }
        })
        .y_labels(6)
        .y_label_formatter(&|percent| format!("{percent:.2} %"))
        .x_desc("layer")
        .label_style(text(14))
        .axis_desc_style(text(15))
        .draw()?;
    for ((row, (kind, line)), colour) in (0..).zip(&drawing.lines).zip(COLOURS.iter().cycle()) {
        let at = || line.iter().map(|&(layer, percent)| (layer as f64, percent));
        chart.draw_series(LineSeries::new(at(), colour.stroke_width(2)))?;
        chart.draw_series(at().map(|point| Circle::new(point, 3, colour.filled())))?;
        let y = 12 + 26 * row;
        legend.draw(&PathElement::new([(8, y), (34, y)], colour.stroke_width(2)))?;
        legend.draw(&Circle::new((21, y), 3, colour.filled()))?;
        legend.draw_text(kind, &text(15), (44, y - 6))?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of layer `layer`'s `part`, or of one outside the layers.
    fn error(layer: Option<usize>, part: &str, relative_error: f64) -> TensorError {
        let within = layer.map_or("model".into(), |layer| format!("model.layers.{layer}"));
        TensorError {
            tensor: format!("{within}.{part}.weight"),
            layer,
            relative_error,
            sqnr_db: None,
            largest_error: 0.0,
        }
    }

    fn drawn(drawing: &Drawing) -> String {
        let mut svg = String::new();
        draw_on(&mut svg, drawing).unwrap();
        svg
    }

    #[test]
    fn each_of_several_models_is_one_line_over_the_layers() {
        let of = |errors: [f64; 2]| {
            let names = ["self_attn.q_proj", "mlp.up_proj"];
            names
                .iter()
                .zip(errors)
                .map(|(part, relative)| error(Some(3), part, relative))
                .collect::<Vec<_>>()
        };
        let (first, second) = (of([0.03, 0.04]), of([0.01, 0.01]));
        let drawing = Drawing::of_several(&[("first", &first), ("second", &second)]);
        assert!((drawing.lines["A"][0].1 - 12.5f64.sqrt()).abs() < 1e-9);
        assert_eq!(drawing.lines["B"][0].0, 3);
        let svg = drawn(&drawing);
        assert!(svg.contains("A: first, B: second"), "{svg}");
    }

    #[test]
    fn a_line_has_the_layers_of_one_kind_in_order() {
        let tensors = [
            error(Some(1), "mlp.up_proj", 0.02),
            error(None, "embed_tokens", 0.03),
            error(Some(0), "mlp.up_proj", 0.01),
            error(Some(0), "self_attn.q_proj", 0.04),
        ];
        let (blocks, others) = by_kind(&tensors);
        assert_eq!(blocks["up_proj"], [(0, 1.0), (1, 2.0)]);
        assert_eq!(blocks["q_proj"], [(0, 4.0)]);
        assert_eq!(others, [("embed_tokens".to_owned(), 3.0)]);

        let svg = drawn(&Drawing::of_one("tiny", &tensors));
        for part in [
            "<svg",
            "</svg>",
            "up_proj",
            "q_proj",
            "embed_tokens 3.00 %",
            "tiny",
        ] {
            assert!(svg.contains(part), "{part}");
        }
    }

    #[test]
    fn experts_and_the_layer_beside_them_have_lines_of_their_own() {
        let tensors = [
            error(Some(0), "shared_mlp.input_linear", 0.01),
            error(Some(0), "block_sparse_moe.input_linear", 0.02),
        ];
        let (blocks, _) = by_kind(&tensors);
        assert_eq!(blocks["input_linear"], [(0, 1.0)]);
        assert_eq!(blocks["expert input_linear"], [(0, 2.0)]);
    }

    #[test]
    fn weights_without_error_are_drawn_too() {
        let tensors = vec![error(Some(0), "mlp.up_proj", 0.0)];
        assert!(drawn(&Drawing::of_one("m", &tensors)).contains("</svg>"));
    }
}
