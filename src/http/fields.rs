//! The fields of a request's JSON object: taken one by one and checked; fields that no code takes are reported.

use std::borrow::Cow;
use std::collections::BTreeMap;

use axum::http::HeaderValue;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::error_body::ApiError;
use super::values::{Id, Range, Whole};

/// Names listed in `X-Ignored-Params` at most, which bounds the header.
const MAX_NAMES_LISTED: usize = 16;
/// Characters of a client's text that a response or a header repeats at most.
pub const MAX_REPEATED: usize = 64;

/// The fields of a JSON object that have not been taken yet. Each is parsed as its type when it is taken, so that an
/// error can name it. `null` is the same as absent.
pub struct Fields<'a> {
    fields: BTreeMap<String, &'a RawValue>,
    /// Fields that were taken but change nothing.
    ignored: Vec<String>,
    /// Every name that the code tried to take, present or not, to be compared with the OpenAPI document.
    #[cfg(test)]
    asked: Vec<&'static str>,
}

/// The value of a field that is a text or a list of objects.
pub enum TextOrObjects<'a> {
    /// A text.
    Text(String),
    /// The fields of each object.
    Objects(Vec<Fields<'a>>),
}

impl<'a> Fields<'a> {
    /// Parses the outermost level of a body. Values are only delimited here, not parsed, so a deep or long body takes
    /// no more memory than its text. A byte order mark, which some clients put first, is skipped.
    ///
    /// # Errors
    /// [`ApiError::InvalidJson`].
    pub fn parse(body: &'a [u8]) -> Result<Self, ApiError> {
        let body = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body);
        let fields = serde_json::from_slice(body)
            .map_err(|problem| ApiError::InvalidJson(problem.to_string()))?;
        Ok(Self::of(fields))
    }

    const fn of(fields: BTreeMap<String, &'a RawValue>) -> Self {
        Self {
            fields,
            ignored: Vec::new(),
            #[cfg(test)]
            asked: Vec::new(),
        }
    }

    /// Takes a field, `None` if it is absent.
    ///
    /// # Errors
    /// [`ApiError::InvalidValue`], with the message that it must be `expected`.
    pub fn take<T: Deserialize<'a>>(
        &mut self,
        param: &'static str,
        expected: &str,
    ) -> Result<Option<T>, ApiError> {
        #[cfg(test)]
        self.asked.push(param);
        match self.fields.remove(param) {
            None => Ok(None),
            Some(raw) => {
                serde_json::from_str(raw.get()).map_err(|_problem| invalid(param, expected))
            }
        }
    }

    /// Takes a number within `range`.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn number(&mut self, param: &'static str, range: Range) -> Result<f32, ApiError> {
        let expected = range.to_string();
        let value: f64 = self.take(param, &expected)?.unwrap_or(range.default);
        if range.contains(value) {
            Ok(value as f32)
        } else {
            Err(invalid(param, expected))
        }
    }

    /// Takes a whole number within `range`.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn count(
        &mut self,
        param: &'static str,
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<Option<usize>, ApiError> {
        let expected = match *range.end() {
            usize::MAX => format!("an integer of at least {}", range.start()),
            end => format!("an integer from {} to {end}", range.start()),
        };
        match self.take(param, &expected)? {
            None => Ok(None),
            Some(Whole(..=-1)) => Err(invalid(param, expected)),
            // A number beyond `usize` means "no limit" just as well.
            Some(Whole(value)) => match usize::try_from(value).unwrap_or(usize::MAX) {
                value if range.contains(&value) => Ok(Some(value)),
                _ => Err(invalid(param, expected)),
            },
        }
    }

    /// Takes a whole number of 64 bits.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn integer(
        &mut self,
        param: &'static str,
        expected: &str,
    ) -> Result<Option<i64>, ApiError> {
        match self.take(param, expected)? {
            None => Ok(None),
            Some(Whole(value)) => match i64::try_from(value) {
                Ok(value) => Ok(Some(value)),
                Err(_too_large) => Err(invalid(param, expected)),
            },
        }
    }

    /// Takes a list of token ids.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn ids(
        &mut self,
        param: &'static str,
        expected: &str,
    ) -> Result<Option<Vec<u32>>, ApiError> {
        let ids: Option<Vec<Id>> = self.take(param, expected)?;
        Ok(ids.map(|ids| ids.into_iter().map(|id| id.0).collect()))
    }

    /// Takes a boolean, `false` if absent.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn flag(&mut self, param: &'static str) -> Result<bool, ApiError> {
        Ok(self.take(param, "true or false")?.unwrap_or(false))
    }

    /// Takes a field of OpenAI's API that is not supported, and refuses any value but the ones that change nothing.
    ///
    /// # Errors
    /// [`ApiError::Unsupported`].
    pub fn only<T: Deserialize<'a>>(
        &mut self,
        param: &'static str,
        neutral: &'static str,
        is_neutral: impl Fn(&T) -> bool,
    ) -> Result<(), ApiError> {
        match self.take::<T>(param, neutral) {
            Ok(None) => Ok(()),
            Ok(Some(value)) if is_neutral(&value) => Ok(()),
            _ => Err(ApiError::Unsupported { param, neutral }),
        }
    }

    /// Takes an object and returns its fields.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn object(
        &mut self,
        param: &'static str,
        expected: &str,
    ) -> Result<Option<Self>, ApiError> {
        Ok(self.take(param, expected)?.map(Self::of))
    }

    /// The fields of an object, which is the value of the field `param`.
    ///
    /// # Errors
    /// [`ApiError::InvalidValue`] if it is none.
    pub fn of_object(
        json: &'a RawValue,
        param: impl Into<Cow<'static, str>>,
        expected: &str,
    ) -> Result<Self, ApiError> {
        let fields =
            serde_json::from_str(json.get()).map_err(|_problem| invalid(param, expected))?;
        Ok(Self::of(fields))
    }

    /// Takes a list of objects.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn objects(
        &mut self,
        param: &'static str,
        expected: &str,
    ) -> Result<Option<Vec<Self>>, ApiError> {
        let objects: Option<Vec<&RawValue>> = self.take(param, expected)?;
        objects.map(|objects| each(objects, param)).transpose()
    }

    /// Takes a text, or a list of objects in place of it.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn text_or_objects(
        &mut self,
        param: &'static str,
        expected: &str,
    ) -> Result<Option<TextOrObjects<'a>>, ApiError> {
        let Some(raw) = self.take::<&RawValue>(param, expected)? else {
            return Ok(None);
        };
        let refused = |_problem| invalid(param, expected);
        if raw.get().starts_with('"') {
            let text = serde_json::from_str(raw.get()).map_err(refused)?;
            return Ok(Some(TextOrObjects::Text(text)));
        }
        let objects: Vec<&RawValue> = serde_json::from_str(raw.get()).map_err(refused)?;
        Ok(Some(TextOrObjects::Objects(each(objects, param)?)))
    }

    /// Every name that the code has tried to take so far.
    #[cfg(test)]
    pub fn asked(&self) -> std::collections::BTreeSet<&'static str> {
        self.asked.iter().copied().collect()
    }

    /// The names of the fields that have not been taken.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    /// Whether the field is present and has not been taken.
    pub fn has(&self, param: &str) -> bool {
        self.fields.contains_key(param)
    }

    /// The JSON of a field that has not been taken yet; `None` if it is absent or `null`.
    pub fn json(&self, param: &str) -> Option<&'a RawValue> {
        let json = self.fields.get(param).copied();
        json.filter(|json| json.get() != "null")
    }

    /// The names and values of the fields that have not been taken; `None` if a value is not a text.
    pub fn texts(&self) -> Option<Vec<(&str, String)>> {
        let fields = self.fields.iter();
        fields
            .map(|(name, json)| Some((name.as_str(), serde_json::from_str(json.get()).ok()?)))
            .collect()
    }

    /// Whether a field that has not been taken yet is absent or `null`.
    pub fn is_unset(&self, param: &str) -> bool {
        let field = self.fields.get(param);
        field.is_none_or(|field| field.get() == "null")
    }

    /// Records that a field that was taken changes nothing.
    pub fn ignore(&mut self, name: impl Into<String>) {
        self.ignored.push(name.into());
    }

    /// Records the fields that are left in an object that was the field `param`.
    pub fn ignore_rest(&mut self, param: &str, rest: Self) {
        let names = rest.fields.into_keys().chain(rest.ignored);
        self.ignored
            .extend(names.map(|name| format!("{param}.{name}")));
    }

    /// The names of all fields that change nothing.
    ///
    /// # Errors
    /// [`ApiError::UnknownParameter`] for the first of them, if `strict`.
    pub fn finish(self, strict: bool) -> Result<Vec<String>, ApiError> {
        let mut ignored = self.ignored;
        ignored.extend(self.fields.into_keys());
        match ignored.first() {
            Some(name) if strict => Err(ApiError::UnknownParameter {
                param: name.chars().take(MAX_REPEATED).collect(),
            }),
            _ => Ok(ignored),
        }
    }
}

/// The fields of each object in a list that was the field `param`.
fn each<'a>(objects: Vec<&'a RawValue>, param: &str) -> Result<Vec<Fields<'a>>, ApiError> {
    let objects = objects.into_iter().enumerate();
    objects
        .map(|(at, json)| Fields::of_object(json, format!("{param}[{at}]"), "an object"))
        .collect()
}

/// The error for a field that does not have the expected value.
pub fn invalid(param: impl Into<Cow<'static, str>>, expected: impl Into<String>) -> ApiError {
    ApiError::InvalidValue {
        param: param.into(),
        expected: expected.into(),
    }
}

/// The value of `X-Ignored-Params`: the field names, except those that are too long or have characters that are unsafe
/// in a header.
pub fn ignored_header(names: &[String]) -> Option<HeaderValue> {
    let is_plain = |name: &&String| {
        name.len() <= MAX_REPEATED
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    };
    let plain: Vec<&str> = names
        .iter()
        .filter(is_plain)
        .take(MAX_NAMES_LISTED)
        .map(String::as_str)
        .collect();
    let list = match (names.is_empty(), plain.is_empty()) {
        (true, _) => return None,
        (false, true) => "?".to_owned(),
        (false, false) => plain.join(", "),
    };
    HeaderValue::try_from(list).ok()
}
