//! How packed weights were made, and which tensors hold them.

use std::collections::BTreeMap;

use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};

use super::evaluation::EvaluationRecord;
use crate::error::{Error, Result};
use crate::int8::rotation::Rotation;
use crate::int8::scheme::Scheme;
use crate::int8::{GROUP, PANEL};
use crate::model::blueprint::{MatrixPart, VectorPart};
use crate::sources::packed::Packed;

/// The version of the files' format that this program writes and reads.
pub const FORMAT: u32 = 1;

/// The order of the codes; a different order needs a different name.
pub const LAYOUT: &str = "u8-panels-k4x64x4";

/// How packed weights were made and how large the errors are: `quantization.json`. Unknown fields are ignored, so that
/// files of the same format by later programs can be read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quantization {
    /// `FORMAT`.
    pub format: u32,
    /// `LAYOUT`.
    pub layout: String,
    /// The program that wrote the files.
    pub created_by: String,
    /// How weights were mapped to codes.
    pub scheme: Scheme,
    /// The tool that made the codes of the layers, if they were kept as they are; `scheme` then applies to the other
    /// matrices.
    #[serde(default)]
    pub kept_codes: Option<String>,
    /// The exponent of SmoothQuant, if activations were smoothed.
    #[serde(default)]
    pub smooth: Option<f32>,
    /// Whether rounding errors were compensated.
    #[serde(default)]
    pub compensated: bool,
    /// The text on which smoothing and compensation were based.
    #[serde(default)]
    pub calibration: Option<CalibrationRecord>,
    /// What the weights were made from.
    pub source: SourceRecord,
    /// Every matrix by name.
    pub matrices: BTreeMap<String, MatrixRecord>,
    /// The SHA-256 of every tensor's bytes.
    pub checksums: BTreeMap<String, String>,
    /// Results of evaluations, newest last.
    #[serde(default)]
    pub evaluations: Vec<EvaluationRecord>,
}

/// The checkpoint that weights were made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// The model's name.
    pub name: String,
    /// The SHA-256 of every file that held weights, by file name.
    pub files: BTreeMap<String, String>,
}

/// A text that a model was calibrated on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalibrationRecord {
    /// The name of the text.
    pub text: String,
    /// The SHA-256 of its documents, one after the other.
    pub sha256: String,
    /// How many of its tokens were run.
    pub tokens: usize,
}

/// One matrix.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MatrixRecord {
    /// The rotation that activations need before they are multiplied with it.
    pub rotation: Rotation,
    /// Signal-to-quantization-noise ratio in decibels; absent if there is no error.
    pub sqnr_db: Option<f64>,
    /// The largest error of a weight, in the rotated matrix.
    pub largest_error: f32,
}

impl Quantization {
    /// Reads the `quantization.json` of a packed folder.
    ///
    /// # Errors
    /// [`Error::BadModel`] naming the field, or if the file has another format.
    pub fn of(packed: &Packed) -> Result<Self> {
        let bad = |field: &str, problem: String| {
            Error::bad_model(&packed.quantization_file, field, problem)
        };
        let format = &packed.quantization["format"];
        if *format != FORMAT {
            let problem = format!(
                "is {format}, and this program reads {FORMAT}; pack the model again with `microgranite quantize`"
            );
            return Err(bad("format", problem));
        }
        let layout = &packed.quantization["layout"];
        if *layout != LAYOUT {
            let problem = format!("is {layout}; the kernels of this program read {LAYOUT:?}");
            return Err(bad("layout", problem));
        }
        Self::deserialize(&packed.quantization).map_err(|e| bad("JSON", e.to_string()))
    }
}

/// A tensor of the weights file.
pub(crate) struct StoredTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl StoredTensor {
    fn new(name: String, dtype: Dtype, shape: Vec<usize>) -> Self {
        Self { name, dtype, shape }
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        let width = if self.dtype == Dtype::F32 { 4 } else { 1 };
        self.shape.iter().product::<usize>() * width
    }
}

/// The four tensors that may make a matrix: codes, scales, group scales, zero points.
pub(crate) fn tensors_of_matrix(part: &MatrixPart) -> [StoredTensor; 4] {
    let panels = part.columns.padded_count().div_ceil(PANEL);
    let grouped = vec![panels, part.depth.div_ceil(GROUP), PANEL];
    let name = |suffix: &str| format!("{}.{suffix}", part.name);
    let codes = vec![panels, part.depth.div_ceil(4), PANEL, 4];
    [
        StoredTensor::new(name("codes"), Dtype::U8, codes),
        StoredTensor::new(name("scales"), Dtype::F32, vec![panels * PANEL]),
        StoredTensor::new(name("group_scales"), Dtype::F32, grouped.clone()),
        StoredTensor::new(name("zero_points"), Dtype::U8, grouped),
    ]
}

/// The tensor of a vector, padded to whole panels so that the next tensor begins on a cache line.
pub(crate) fn tensor_of_vector(part: &VectorPart) -> StoredTensor {
    let padded = part.len().next_multiple_of(PANEL);
    StoredTensor::new(part.name.clone(), Dtype::F32, vec![padded])
}
