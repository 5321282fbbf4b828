//! How a model wants its tokens chosen: what its files say beside the weights.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// What holds where a request says nothing. What a model does not name has the server's own default.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GenerationDefaults {
    /// From 0 to 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Above 0 and at most 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// 0 keeps all tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// From 0.01 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f64>,
    /// At least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
}

/// What GGUF files call the fields.
const GGUF_KEYS: [(&str, &str); 4] = [
    ("temperature", "general.sampling.temp"),
    ("top_p", "general.sampling.top_p"),
    ("top_k", "general.sampling.top_k"),
    ("repetition_penalty", "general.sampling.penalty_repeat"),
];

impl GenerationDefaults {
    /// Those in `generation_config.json`.
    ///
    /// # Errors
    /// [`Error::BadModel`] naming the field that is out of range.
    pub fn of_json(file: &Path, json: &Value) -> Result<Self> {
        let number = |name: &str| json.get(name).filter(|value| !value.is_null());
        let number = |name: &str| match number(name) {
            None => Ok(None),
            Some(value) => value
                .as_f64()
                .map(Some)
                .ok_or_else(|| Error::bad_model(file, name, "must be a number")),
        };
        Self::of_numbers(file, number, |name| name)
    }

    /// Those in the metadata of a GGUF file, in which `number` finds a key.
    ///
    /// # Errors
    /// As [`Self::of_json`].
    pub fn of_gguf(file: &Path, number: impl Fn(&str) -> Result<Option<f64>>) -> Result<Self> {
        let key = |name: &'static str| {
            let mut keys = GGUF_KEYS.iter();
            keys.find(|(ours, _)| *ours == name).map(|(_, key)| *key)
        };
        // The file has f32, of which the shortest digits are the number that was meant.
        let meant = |value: f64| (value as f32).to_string().parse().unwrap_or(value);
        let find = |name: &'static str| match key(name) {
            Some(key) => Ok(number(key)?.map(meant)),
            None => Ok(None),
        };
        Self::of_numbers(file, find, |name| key(name).unwrap_or(name))
    }

    fn of_numbers(
        file: &Path,
        number: impl Fn(&'static str) -> Result<Option<f64>>,
        key: impl Fn(&'static str) -> &'static str,
    ) -> Result<Self> {
        let within = |name: &'static str, expected: &str, is_valid: &dyn Fn(f64) -> bool| {
            match number(name)? {
                Some(value) if !is_valid(value) => {
                    let problem = format!("is {value}, expected {expected}");
                    Err(Error::bad_model(file, key(name), problem))
                }
                value => Ok(value),
            }
        };
        let is_whole = |value: f64| value.fract() == 0.0 && value < f64::from(u32::MAX);
        let top_k = within("top_k", "a whole number of at least -1", &|k| {
            k >= -1.0 && is_whole(k)
        })?;
        let most = within("max_new_tokens", "a whole number of at least 1", &|most| {
            most >= 1.0 && is_whole(most)
        })?;
        let temperature = within("temperature", "a number from 0 to 2", &|t| {
            (0.0..=2.0).contains(&t)
        })?;
        let top_p = within("top_p", "a number above 0 and at most 1", &|p| {
            p > 0.0 && p <= 1.0
        })?;
        let penalty = within("repetition_penalty", "a number from 0.01 to 100", &|p| {
            (0.01..=100.0).contains(&p)
        })?;
        Ok(Self {
            temperature,
            top_p,
            top_k: top_k.map(|k| k.max(0.0) as usize),
            repetition_penalty: penalty,
            max_new_tokens: most.map(|most| most as usize),
        })
    }

    /// As fields of `generation_config.json`.
    pub fn fields(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_fields_are_read_and_written_and_bad_ones_are_named() {
        let file = Path::new("generation_config.json");
        let read = |json: Value| GenerationDefaults::of_json(file, &json);
        let all = json!({"temperature": 0.5, "top_p": 0.75, "top_k": 20, "repetition_penalty": 1.5, "max_new_tokens": 9});
        let defaults = read(all.clone()).unwrap();
        assert_eq!(Value::Object(defaults.fields()), all);
        let none = read(json!({"temperature": null, "do_sample": true})).unwrap();
        assert_eq!(none, GenerationDefaults::default());
        assert_eq!(read(json!({"top_k": -1})).unwrap().top_k, Some(0));
        for (name, bad) in [
            ("temperature", json!(2.5)),
            ("temperature", json!("warm")),
            ("top_p", json!(0)),
            ("top_k", json!(1.5)),
            ("repetition_penalty", json!(0)),
            ("max_new_tokens", json!(0)),
        ] {
            let problem = read(json!({ name: bad })).unwrap_err().to_string();
            assert!(problem.contains(name), "{problem}");
        }
    }

    #[test]
    fn gguf_files_have_names_of_their_own() {
        let file = Path::new("model.gguf");
        let number = |key: &str| Ok((key == "general.sampling.temp").then_some(0.5));
        let defaults = GenerationDefaults::of_gguf(file, number).unwrap();
        assert_eq!(defaults.temperature, Some(0.5));
        assert_eq!(defaults.top_p, None);
        let bad = |key: &str| Ok((key == "general.sampling.top_p").then_some(3.0));
        let problem = GenerationDefaults::of_gguf(file, bad).unwrap_err();
        assert!(problem.to_string().contains("general.sampling.top_p"));
    }
}
