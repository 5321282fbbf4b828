//! Loading a packed model.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::format::{Quantization, StoredTensor, tensor_of_vector, tensors_of_matrix};
use super::verify::compare;
use crate::error::{Error, Result};
use crate::int8::kernels::pool::{PerUnit, Pool};
use crate::int8::matrix::{Matrix, Scales};
use crate::int8::memory::Memory;
use crate::model::blueprint::{Blueprint, MatrixPart, VectorPart};
use crate::model::fold::Folded;
use crate::model::weights::{Source, Weights};
use crate::sources::packed::Packed;

/// Where the weights of a packed model are while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// In the file, mapped: ready at once, and shared with every process that serves the same file.
    #[default]
    Mmap,
    /// In memory of this process, on huge pages if the system provides them.
    Copy,
}

/// Bytes in the units that threads divide: small enough to divide a matrix evenly, large enough to be worth a call.
const CHUNK_BYTES: usize = 1 << 20;

/// Loads the weights: codes are mapped or copied as `placement` says, scales and norms are copied. Scales and norms are
/// compared with their checksums. Damaged codes can only give wrong text; [`super::verify()`] checks them.
///
/// # Errors
/// [`Error::BadModel`] for a tensor that is missing, does not have the shape of the blueprint, differs from its
/// checksum, has a value that is not finite or out of range, or is not part of the model.
pub fn load(
    blueprint: &Blueprint,
    packed: &Packed,
    placement: Placement,
    pool: &mut Pool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Weights> {
    let mut reader = Reader {
        packed,
        quantization: Quantization::of(packed)?,
        placement,
        pool,
        progress,
        used: BTreeSet::new(),
        done: 0,
        total: blueprint.elements(),
    };
    let weights = blueprint.make(&mut Folded(&mut reader))?;
    if let Some(name) = packed.names().find(|name| !reader.used.contains(*name)) {
        let problem = "is not part of the model that config.json describes";
        return Err(Error::bad_model(packed.file().path(), name, problem));
    }
    Ok(weights)
}

struct Reader<'a> {
    packed: &'a Packed,
    quantization: Quantization,
    placement: Placement,
    pool: &'a mut Pool,
    progress: &'a mut dyn FnMut(u64, u64),
    /// The tensors that were read.
    used: BTreeSet<String>,
    done: u64,
    total: u64,
}

impl Reader<'_> {
    /// The bytes of a small tensor, compared with their checksum, if there is one.
    fn find(&mut self, tensor: &StoredTensor) -> Result<Option<&[u8]>> {
        let StoredTensor { name, dtype, shape } = tensor;
        let Some(range) = self.packed.find(name, *dtype, shape)? else {
            return Ok(None);
        };
        self.used.insert(name.clone());
        let bytes = &self.packed.file()[range];
        compare(self.packed, &self.quantization, name, bytes)?;
        Ok(Some(bytes))
    }

    /// The values of a small tensor, if there is one.
    fn find_floats(&mut self, tensor: &StoredTensor) -> Result<Option<Vec<f32>>> {
        let Some(bytes) = self.find(tensor)? else {
            return Ok(None);
        };
        let four = bytes.chunks_exact(4);
        let values: Vec<f32> = four
            .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
            .collect();
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let problem = format!("value {at} is {}, not a finite number", values[at]);
            return Err(Error::bad_model(
                self.packed.file().path(),
                &tensor.name,
                problem,
            ));
        }
        Ok(Some(values))
    }

    fn floats(&mut self, tensor: &StoredTensor) -> Result<Vec<f32>> {
        let StoredTensor { name, dtype, shape } = tensor;
        self.packed.get(name, *dtype, shape)?;
        Ok(self.find_floats(tensor)?.unwrap_or_default())
    }

    fn codes(&mut self, tensor: &StoredTensor) -> Result<Memory> {
        let StoredTensor { name, dtype, shape } = tensor;
        let range = self.packed.get(name, *dtype, shape)?;
        self.used.insert(name.clone());
        let file = self.packed.file();
        if self.placement == Placement::Mmap {
            let chunks = range.len().div_ceil(CHUNK_BYTES);
            self.pool.run(chunks, (), |_, share, ()| {
                let start = range.start + share.start * CHUNK_BYTES;
                let end = range.start + share.end * CHUNK_BYTES;
                file.populate(start..end.min(range.end));
            });
            return Ok(Memory::shared(Arc::clone(file) as _, range));
        }
        let bytes = &file[range];
        let mut copy = Memory::zeroed(bytes.len())?;
        let chunks = copy.bytes_mut().chunks_mut(CHUNK_BYTES);
        let mut pairs: Vec<_> = chunks.zip(bytes.chunks(CHUNK_BYTES)).collect();
        let count = pairs.len();
        let parts = PerUnit::new(&mut pairs, 1);
        self.pool.run(count, parts, |_, _, pairs| {
            pairs
                .iter_mut()
                .for_each(|(to, from)| to.copy_from_slice(from));
        });
        drop(pairs);
        Ok(copy)
    }
}

impl Source<&MatrixPart, &VectorPart> for Reader<'_> {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Error = Error;

    fn matrix(&mut self, part: &MatrixPart) -> Result<Matrix> {
        let Some(record) = self.quantization.matrices.get(&part.name) else {
            let problem = format!("{} is missing", part.name);
            let file = &self.packed.quantization_file;
            return Err(Error::bad_model(file, "matrices", problem));
        };
        let rotation = record.rotation;
        let [codes, column, group, zero_points] = tensors_of_matrix(part);
        let codes = self.codes(&codes)?;
        let scales = Scales {
            column: self.floats(&column)?,
            group: self.find_floats(&group)?,
            zero_points: self.find(&zero_points)?.map(<[u8]>::to_vec),
        };
        self.done += (part.columns.count() * part.depth) as u64;
        (self.progress)(self.done, self.total);
        let columns = part.columns.padded_count();
        Ok(Matrix::from_parts(
            columns, part.depth, rotation, codes, scales,
        ))
    }

    fn vector(&mut self, part: &VectorPart) -> Result<Vec<f32>> {
        let mut values = self.floats(&tensor_of_vector(part))?;
        values.truncate(part.len());
        if let Some(problem) = part.problem(&values) {
            let file = self.packed.file().path();
            return Err(Error::bad_model(file, &part.name, problem));
        }
        Ok(values)
    }
}
