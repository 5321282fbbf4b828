//! Quantizing a checkpoint into a packed model.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, TensorInfo};

use super::calibrate::{CalibrationRun, Compensation};
use super::smooth::Smoothed;
use crate::error::{Error, Result};
use crate::int8::compute::Compute;
use crate::int8::scheme::{Granularity, Mapping, Scheme};
use crate::model::ModelConfig;
use crate::model::blueprint::{MatrixPart, VectorPart, blueprint};
use crate::model::packed::{
    CalibrationRecord, FORMAT, LAYOUT, MatrixRecord, Quantization, SourceRecord, StoredTensor,
    tensor_of_vector, tensors_of_matrix,
};
use crate::model::quantizer::{Quantizer, scheme_of};
use crate::model::tensors::check_shapes;
use crate::model::weights::Source;
use crate::sources::hash::{sha256, sha256_of};
use crate::sources::packed::{QUANTIZATION, WEIGHTS};
use crate::sources::{Checkpoint, Tensors};

/// Tensors begin on a cache line: the header is padded with spaces, as the format allows, and the size of every tensor
/// is a multiple of this.
const ALIGNMENT: usize = 64;

/// How to pack a model.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// How weights are mapped to codes.
    pub scheme: Scheme,
    /// The exponent of SmoothQuant, if activations are smoothed.
    pub smooth: Option<f32>,
    /// Whether rounding errors are compensated.
    pub compensate: bool,
    /// Token ids of the calibration text in sequences; needed for smoothing and compensation.
    pub sequences: Vec<Vec<u32>>,
    /// The name, checksum and length of the calibration text.
    pub calibration: Option<CalibrationRecord>,
}

/// Quantizes a float checkpoint and writes both files of a packed model into `folder`, tensor by tensor, so that at
/// most one matrix is in memory. `progress` gets the number of weights done and of all weights.
///
/// # Errors
/// [`Error::BadModel`] for anything wrong with the checkpoint, [`Error::Io`] if a file cannot be written.
pub fn write(
    checkpoint: &Checkpoint,
    plan: &Plan,
    threads: usize,
    folder: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Quantization> {
    let config = ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config)?;
    let tensors = checkpoint.tensors()?;
    let blueprint = blueprint(&config);
    check_shapes(&config, &blueprint, tensors)?;
    let (mut compute, scheme) = (Compute::new(threads)?, &plan.scheme);
    let run = |tensors| CalibrationRun::new(&config, tensors, &plan.sequences);
    let smoothed = match plan.smooth {
        Some(alpha) => {
            let run = run(tensors)?;
            Some(Smoothed::new(&config, tensors, run, alpha, progress)?)
        }
        None => None,
    };
    let floats = smoothed.as_ref().map_or(tensors, |smoothed| smoothed);
    let compensation = match plan.compensate {
        true => Some(Compensation::new(run(floats)?, scheme.rotation)),
        false => None,
    };
    let quantizer = Quantizer::new(&blueprint, floats, scheme, &mut compute, progress);

    let path = folder.join(WEIGHTS);
    let mut contents = Contents::new(scheme, tensors);
    blueprint.make(&mut contents)?;
    let mut output = Output {
        file: File::create_new(&path).map_err(|e| Error::io(&path, e))?,
        path,
        checksums: BTreeMap::new(),
    };
    output.put(&contents.header()?)?;
    let mut writer = Writer {
        quantizer,
        compensation,
        output,
        matrices: BTreeMap::new(),
    };
    // The files of the checkpoint are hashed at the same time as they are read for packing.
    let files = std::thread::scope(|scope| {
        let files = scope.spawn(|| file_hashes(tensors));
        blueprint.make(&mut writer)?;
        files
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let Writer {
        output, matrices, ..
    } = writer;
    let synced = output.file.sync_all();
    synced.map_err(|e| Error::io(&output.path, e))?;
    let quantization = Quantization {
        format: FORMAT,
        layout: LAYOUT.into(),
        created_by: concat!("microgranite ", env!("CARGO_PKG_VERSION")).into(),
        scheme: *scheme,
        kept_codes: tensors.quantization().map(str::to_owned),
        smooth: plan.smooth,
        compensated: plan.compensate,
        calibration: plan.calibration.clone(),
        source: SourceRecord {
            name: checkpoint.name.clone(),
            files,
        },
        matrices,
        checksums: output.checksums,
        evaluations: Vec::new(),
    };
    let json = serde_json::to_vec_pretty(&quantization);
    let json = json.map_err(|e| Error::Internal(format!("{QUANTIZATION}: {e}")))?;
    let path = folder.join(QUANTIZATION);
    let written = File::create_new(&path).and_then(|mut file| {
        file.write_all(&json)?;
        file.sync_all()
    });
    written.map_err(|e| Error::io(&path, e))?;
    Ok(quantization)
}

/// The SHA-256 of every file that holds a tensor.
fn file_hashes(tensors: &dyn Tensors) -> Result<BTreeMap<String, String>> {
    let names = tensors.names();
    let paths: BTreeSet<PathBuf> = names.iter().map(|name| tensors.file(name)).collect();
    let hash = |path: PathBuf| {
        let name = path.file_name().unwrap_or_default();
        let hash = File::open(&path).and_then(|file| sha256(file, u64::MAX - 1));
        let hash = hash.map_err(|e| Error::io(&path, e))?;
        Ok((name.to_string_lossy().into_owned(), hash))
    };
    paths.into_iter().map(hash).collect()
}

/// Lists the tensors that will be written, because the header comes before them.
struct Contents<'a> {
    scheme: &'a Scheme,
    checkpoint: &'a dyn Tensors,
    tensors: Vec<(String, TensorInfo)>,
    end: usize,
}

impl<'a> Contents<'a> {
    const fn new(scheme: &'a Scheme, checkpoint: &'a dyn Tensors) -> Self {
        Self {
            scheme,
            checkpoint,
            tensors: Vec::new(),
            end: 0,
        }
    }

    fn add(&mut self, tensor: StoredTensor) {
        let start = self.end;
        self.end += tensor.bytes();
        let info = TensorInfo {
            dtype: tensor.dtype,
            shape: tensor.shape,
            data_offsets: (start, self.end),
        };
        self.tensors.push((tensor.name, info));
    }

    /// The header, preceded by its length.
    fn header(self) -> Result<Vec<u8>> {
        let internal = |problem: String| Error::Internal(format!("{WEIGHTS}: {problem}"));
        let metadata = Metadata::new(None, self.tensors).map_err(|e| internal(e.to_string()))?;
        let mut json = serde_json::to_vec(&metadata).map_err(|e| internal(e.to_string()))?;
        json.resize((8 + json.len()).next_multiple_of(ALIGNMENT) - 8, b' ');
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.append(&mut json);
        Ok(header)
    }
}

impl Source<&MatrixPart, &VectorPart> for Contents<'_> {
    type Matrix = ();
    type Vector = ();
    type Error = Error;

    fn matrix(&mut self, part: &MatrixPart) -> Result<()> {
        let [codes, scales, group_scales, zero_points] = tensors_of_matrix(part);
        self.add(codes);
        self.add(scales);
        let scheme = scheme_of(part, self.checkpoint, self.scheme)?;
        if scheme.granularity == Granularity::Group {
            self.add(group_scales);
        }
        if scheme.mapping == Mapping::Affine {
            self.add(zero_points);
        }
        Ok(())
    }

    fn vector(&mut self, part: &VectorPart) -> Result<()> {
        self.add(tensor_of_vector(part));
        Ok(())
    }
}

/// The weights file and the checksums of the tensors written to it.
struct Output {
    file: File,
    path: PathBuf,
    checksums: BTreeMap<String, String>,
}

impl Output {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all(bytes);
        written.map_err(|e| Error::io(&self.path, e))
    }

    fn put_tensor(&mut self, tensor: StoredTensor, bytes: &[u8]) -> Result<()> {
        if bytes.len() != tensor.bytes() {
            let problem = format!("{} has {} bytes", tensor.name, bytes.len());
            return Err(Error::Internal(problem));
        }
        self.put(bytes)?;
        self.checksums.insert(tensor.name, sha256_of(bytes));
        Ok(())
    }
}

/// Quantizes each part and writes it at once.
struct Writer<'a> {
    quantizer: Quantizer<'a>,
    compensation: Option<Compensation<'a>>,
    output: Output,
    matrices: BTreeMap<String, MatrixRecord>,
}

impl Source<&MatrixPart, &VectorPart> for Writer<'_> {
    type Matrix = ();
    type Vector = ();
    type Error = Error;

    fn matrix(&mut self, part: &MatrixPart) -> Result<()> {
        let factors = match (&mut self.compensation, part.input) {
            (Some(compensation), Some(input)) => {
                compensation.factors(input, self.quantizer.compute())?
            }
            _ => Vec::new(),
        };
        let (matrix, loss) = self.quantizer.quantize(part, &factors)?;
        let [codes, column, group, zero_points] = tensors_of_matrix(part);
        let scales = matrix.all_scales();
        let output = &mut self.output;
        output.put_tensor(codes, matrix.codes())?;
        output.put_tensor(column, &little_endian(&scales.column))?;
        if let Some(scales) = &scales.group {
            output.put_tensor(group, &little_endian(scales))?;
        }
        if let Some(points) = &scales.zero_points {
            output.put_tensor(zero_points, points)?;
        }
        let record = MatrixRecord {
            rotation: matrix.rotation(),
            sqnr_db: Some(loss.sqnr_db()).filter(|ratio| ratio.is_finite()),
            largest_error: loss.largest,
        };
        self.matrices.insert(part.name.clone(), record);
        Ok(())
    }

    fn vector(&mut self, part: &VectorPart) -> Result<()> {
        let tensor = tensor_of_vector(part);
        let mut weights = self.quantizer.vector(part)?;
        weights.resize(tensor.shape[0], 0.0);
        self.output.put_tensor(tensor, &little_endian(&weights))
    }
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}
