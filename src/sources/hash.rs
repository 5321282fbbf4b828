//! SHA-256 of what is read.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

/// The SHA-256, in lower-case hexadecimal, of at most `limit` bytes of `from` and one more.
///
/// The one more shows that there are too many without reading them all.
pub fn sha256(from: impl Read, limit: u64) -> io::Result<String> {
    copy_hashed(from, &mut io::sink(), limit)
}

/// The SHA-256 of bytes in memory, in lower-case hexadecimal.
pub fn sha256_of(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// The SHA-256 of bytes in memory, which are taken in pieces, each of which is asked for by `before_piece`.
pub fn sha256_in_pieces<E>(
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

/// As [`sha256`], and copies what it hashes to `to`.
pub fn copy_hashed(from: impl Read, to: &mut impl Write, limit: u64) -> io::Result<String> {
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
