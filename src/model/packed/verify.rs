//! Comparing a packed model with its checksums: all at once, or slowly in the background.

use super::format::Quantization;
use crate::error::{Error, Result};
use crate::int8::kernels::pool::{PerUnit, Pool};
use crate::sources::hash::{sha256_in_pieces, sha256_of};
use crate::sources::packed::Packed;

/// Compares every tensor with its checksum, on all threads of `pool`. `progress` gets the number of bytes done and of
/// all bytes.
///
/// # Errors
/// [`Error::BadModel`] naming the first tensor that differs from its checksum.
pub fn verify(packed: &Packed, pool: &mut Pool, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
    let quantization = Quantization::of(packed)?;
    let names: Vec<&str> = packed.names().collect();
    let size = |name: &str| packed.bytes(name).map_or(0, <[u8]>::len) as u64;
    let (mut done, total) = (0, names.iter().map(|name| size(name)).sum());
    for names in names.chunks(pool.threads()) {
        let mut outcomes: Vec<Result<()>> = names.iter().map(|_| Ok(())).collect();
        let parts = PerUnit::new(&mut outcomes, 1);
        pool.run(names.len(), parts, |_, range, outcomes| {
            for (index, outcome) in range.zip(outcomes) {
                let bytes = packed.bytes(names[index]).unwrap_or_default();
                *outcome = compare(packed, &quantization, names[index], bytes);
            }
        });
        outcomes.into_iter().collect::<Result<()>>()?;
        done += names.iter().map(|name| size(name)).sum::<u64>();
        progress(done, total);
    }
    Ok(())
}

/// As [`verify`], but on this thread and in pieces of `piece` bytes. `before_piece` is called before each piece; it may
/// block, or stop the comparison with an error.
///
/// # Errors
/// As [`verify`], and the errors of `before_piece`.
pub fn verify_in_pieces(
    packed: &Packed,
    piece: usize,
    before_piece: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let quantization = Quantization::of(packed)?;
    for name in packed.names() {
        let bytes = packed.bytes(name).unwrap_or_default();
        let found = sha256_in_pieces(bytes, piece, before_piece)?;
        check(packed, &quantization, name, &found)?;
    }
    Ok(())
}

/// Refuses bytes that differ from their checksum.
pub(super) fn compare(
    packed: &Packed,
    quantization: &Quantization,
    name: &str,
    bytes: &[u8],
) -> Result<()> {
    check(packed, quantization, name, &sha256_of(bytes))
}

fn check(packed: &Packed, quantization: &Quantization, name: &str, found: &str) -> Result<()> {
    let Some(written) = quantization.checksums.get(name) else {
        let problem = format!("has no checksum for {name}");
        return Err(Error::bad_model(
            &packed.quantization_file,
            "checksums",
            problem,
        ));
    };
    if found != *written {
        let problem = format!(
            "is damaged: its SHA-256 is {found}, but {written} was written; copy or pack the model again"
        );
        return Err(Error::bad_model(packed.file().path(), name, problem));
    }
    Ok(())
}
