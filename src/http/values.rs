//! Values of fields: numbers within a range, whole numbers as clients write them, and token ids.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

/// The range of a field's numbers, used by its check, its error message and its OpenAPI schema.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// The value of an absent field.
    pub default: f64,
    /// The lower end.
    pub least: f64,
    /// Whether the lower end itself is outside the range.
    pub excludes_least: bool,
    /// The upper end.
    pub most: f64,
}

impl Range {
    /// From `least` to `most`, both included.
    pub const fn new(least: f64, most: f64, default: f64) -> Self {
        Self {
            default,
            least,
            excludes_least: false,
            most,
        }
    }

    /// Above `least`, up to `most`.
    pub const fn above(least: f64, most: f64, default: f64) -> Self {
        Self {
            excludes_least: true,
            ..Self::new(least, most, default)
        }
    }

    /// Whether `value` is in the range.
    pub fn contains(self, value: f64) -> bool {
        let is_enough = match self.excludes_least {
            true => value > self.least,
            false => value >= self.least,
        };
        is_enough && value <= self.most
    }
}

impl fmt::Display for Range {
    /// The range as it follows "must be" in an error message.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { least, most, .. } = self;
        match self.excludes_least {
            true => write!(f, "a number above {least} and at most {most}"),
            false => write!(f, "a number from {least} to {most}"),
        }
    }
}

/// A whole number, as clients in various languages write it: `16`, `16.0` and `1.6e1` are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whole(pub i128);

/// The id of a token: a [`Whole`] of 32 bits.
#[derive(Debug, Clone, Copy)]
pub struct Id(pub u32);

struct WholeNumber;

impl Visitor<'_> for WholeNumber {
    type Value = Whole;

    fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        text.write_str("a whole number")
    }

    fn visit_i64<E>(self, value: i64) -> Result<Whole, E> {
        Ok(Whole(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Whole, E> {
        Ok(Whole(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Whole, E> {
        // Beyond 2^53 the float may differ from the number that was written.
        if value.fract() == 0.0 && value.abs() <= 2_f64.powi(53) {
            Ok(Whole(value as i128))
        } else {
            Err(E::custom("not a whole number"))
        }
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(WholeNumber)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let Whole(value) = Whole::deserialize(from)?;
        u32::try_from(value).map(Self).map_err(D::Error::custom)
    }
}

/// Numbers by token id. In JSON the ids are keys. A repeated id is refused, because one of its two numbers would be
/// lost.
#[derive(Debug, Default)]
pub struct ById(pub BTreeMap<u32, f64>);

impl<'de> Visitor<'de> for ById {
    type Value = Self;

    fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        text.write_str("an object of token ids, each once and with a number")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some((key, value)) = map.next_entry::<String, f64>()? {
            let is_plain = key.bytes().all(|byte| byte.is_ascii_digit());
            let id = key.parse().ok().filter(|_| is_plain);
            let id = id.ok_or_else(|| A::Error::custom("not a token id"))?;
            if self.0.insert(id, value).is_some() {
                return Err(A::Error::custom("an id is there twice"));
            }
        }
        Ok(self)
    }
}

impl<'de> Deserialize<'de> for ById {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(Self::default())
    }
}
