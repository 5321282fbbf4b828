//! Reading fields of a `config.json`, each with a check and an error that names it.

use std::fmt::Display;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

/// The configuration, and the file to name in errors.
pub struct Fields<'a> {
    pub file: &'a Path,
    pub json: &'a Value,
}

impl Fields<'_> {
    /// A size: an integer from 1 to `most`, possibly written as `2048.0`.
    pub fn count(&self, name: &str, most: usize) -> Result<usize> {
        let expected = format!("an integer from 1 to {most}");
        let value = self
            .get(name)
            .ok_or_else(|| self.missing(name, &expected))?;
        value
            .as_f64()
            .filter(|number| number.fract() == 0.0 && (1.0..=most as f64).contains(number))
            .map(|number| number as usize)
            .ok_or_else(|| self.is_but(name, value, format!("expected {expected}")))
    }

    /// One of Granite's multipliers. The bounds are far outside any published value and keep f32 from overflowing.
    pub fn multiplier(&self, name: &str) -> Result<Option<f32>> {
        let number = self.number(name, 1e-6, 1e6)?;
        Ok(number.map(|number| number as f32))
    }

    /// A number from `least` to `most`, as an integer or a float; `None` if the field is absent.
    pub fn number(&self, name: &str, least: f64, most: f64) -> Result<Option<f64>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => {
                let expected = match (least, most) {
                    (least, f64::MAX) => format!("expected a number from {least}"),
                    _ if least == most => format!("expected {least}"),
                    _ => format!("expected a number from {least} to {most}"),
                };
                Err(self.is_but(name, value, expected))
            }
        }
    }

    /// A boolean; false if the field is absent.
    pub fn flag(&self, name: &str) -> Result<bool> {
        let Some(value) = self.get(name) else {
            return Ok(false);
        };
        value
            .as_bool()
            .ok_or_else(|| self.is_but(name, value, "expected true or false"))
    }

    /// Refuses any value but `expected`; an absent field means `expected`.
    pub fn only(&self, name: &str, expected: &str) -> Result<()> {
        match self.get(name) {
            Some(value) if value != expected => {
                Err(self.is_but(name, value, format!("expected \"{expected}\"")))
            }
            _ => Ok(()),
        }
    }

    /// The field at `path`, whose parts are separated by dots.
    pub fn get(&self, path: &str) -> Option<&Value> {
        let value = path
            .split('.')
            .try_fold(self.json, |value, key| value.get(key))?;
        (!value.is_null()).then_some(value)
    }

    pub fn missing(&self, name: &str, expected: impl Display) -> Error {
        self.bad(name, format!("is missing, expected {expected}"))
    }

    pub fn is_but(&self, name: &str, value: &Value, expected: impl Display) -> Error {
        // The message stays one line on a terminal, whatever the file holds.
        const SHOWN_CHARS: usize = 60;
        let mut shown: String = value.to_string();
        if let Some((end, _)) = shown.char_indices().nth(SHOWN_CHARS) {
            shown.truncate(end);
            shown.push('…');
        }
        self.bad(name, format!("is {shown}, {expected}"))
    }

    pub fn bad(&self, name: &str, problem: impl Display) -> Error {
        Error::bad_model(self.file, name, problem)
    }
}
