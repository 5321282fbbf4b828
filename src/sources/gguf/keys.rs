//! The metadata of one architecture: `ARCHITECTURE.block_count` and so on.

use std::fmt::Display;
use std::path::Path;

use super::header::Header;
use crate::error::{Error, Result};

/// The metadata of a file, with the prefix that the architecture gives its keys. Names are without that prefix.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    pub file: &'a Path,
    pub header: &'a Header<'a>,
    /// The value of `general.architecture`.
    pub architecture: &'a str,
}

impl Keys<'_> {
    /// The whole key.
    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// A size, which is given once or the same for every layer; there must be one, and not zero.
    pub fn size(&self, name: &str) -> Result<usize> {
        let key = self.key(name);
        match self.header.count_in_every_layer(&key)? {
            Some(0) => Err(self.bad(name, "is zero")),
            Some(size) => Ok(size),
            None => Err(self.header.missing(&key)),
        }
    }

    /// A count; zero if it is absent.
    pub fn count_or_zero(&self, name: &str) -> Result<usize> {
        let count = self.header.count(&self.key(name))?;
        Ok(count.unwrap_or(0))
    }

    /// A finite number, if there is one.
    pub fn number(&self, name: &str) -> Result<Option<f64>> {
        self.header.number(&self.key(name))
    }

    /// A finite number that must be there.
    pub fn required_number(&self, name: &str) -> Result<f64> {
        let number = self.number(name)?;
        number.ok_or_else(|| self.header.missing(&self.key(name)))
    }

    /// How often size `name` has the parts that `divisor`, another name, counts.
    pub fn quotient(&self, name: &str, divisor: &str) -> Result<usize> {
        let (size, parts) = (self.size(name)?, self.size(divisor)?);
        match size % parts {
            0 => Ok(size / parts),
            _ => Err(self.bad(
                name,
                format!("{size} is not a multiple of {divisor} ({parts})"),
            )),
        }
    }

    /// The error about a key.
    pub fn bad(&self, name: &str, problem: impl Display) -> Error {
        Error::bad_model(self.file, self.key(name), problem)
    }
}
