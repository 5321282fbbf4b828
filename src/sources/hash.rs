//! SHA-256 checksums.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

/// The SHA-256, in lower-case hexadecimal, of the first `limit + 1` bytes of `from`.
///
/// The extra byte changes the result if there are too many bytes, without reading all of them.
pub fn sha256(from: impl Read, limit: u64) -> io::Result<String> {
    copy_hashed(from, &mut io::sink(), limit)
}

/// The SHA-256 of bytes in memory, in lower-case hexadecimal.
pub fn sha256_of(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// The SHA-256 of bytes in memory, hashed in pieces; `before_piece` is called before each and may cancel.
pub(crate) fn sha256_in_pieces<E>(
    bytes: &[u8],
    piece: usize,
    before_piece: &mut dyn FnMut() -> Result<(), E>,
) -> Result<String, E> {
    let mut hasher = Sha256::new();
    for piece in bytes.chunks(piece) {
        before_piece()?;
        hasher.update(piece);
    }
    Ok(hexadecimal(&hasher.finalize()))
}

/// Like [`sha256`], and also copies what it hashes to `to`.
pub(crate) fn copy_hashed(from: impl Read, to: &mut impl Write, limit: u64) -> io::Result<String> {
    let mut both = Hashing {
        hasher: Sha256::new(),
        to,
    };
    io::copy(&mut from.take(limit + 1), &mut both)?;
    Ok(hexadecimal(&both.hasher.finalize()))
}

fn hexadecimal(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Hashing<'a, W> {
    hasher: Sha256,
    to: &'a mut W,
}

impl<W: Write> Write for Hashing<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
