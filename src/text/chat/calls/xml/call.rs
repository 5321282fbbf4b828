//! The call that is being parsed: its arguments become JSON as they arrive.

use serde_json::Value;

use crate::text::values::{Kinds, Tools};

/// The most arguments of one call.
const MAX_ARGUMENTS: usize = 1024;

/// The call that is being parsed.
#[derive(Default)]
pub struct Call {
    name: String,
    /// The keys of the arguments so far.
    keys: Vec<String>,
    /// The types that the current value may have.
    kinds: Kinds,
    /// Whether the key of the current value occurred before, so that the value is left out.
    is_repeated: bool,
    /// The current value so far, unless it is a string, which is passed on at once.
    value: String,
}

impl Call {
    /// A call of the tool `name` without arguments.
    pub fn new(name: String) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }

    /// Whether the call may have an argument `key` after those that it has.
    pub fn may_have(&self, key: &str, tools: &Tools) -> bool {
        let is_new = !self.keys.iter().any(|known| known == key);
        is_new && tools.may_have(&self.name, key)
    }

    /// Begins the value of the argument `key`. Returns the JSON that precedes it, or nothing if the value is left out.
    pub fn begin_value(&mut self, key: String, tools: &Tools) -> Option<String> {
        // Text that was passed on cannot be withdrawn, so the first value of a repeated key is used.
        self.is_repeated = self.keys.contains(&key) || self.keys.len() == MAX_ARGUMENTS;
        self.kinds = tools.kinds(&self.name, &key);
        self.value.clear();
        if self.is_repeated {
            return None;
        }
        let comma = if self.keys.is_empty() { "" } else { ", " };
        let quote = if self.kinds.is_text() { "\"" } else { "" };
        let start = format!("{comma}{}: {quote}", Value::from(&*key));
        self.keys.push(key);
        Some(start)
    }

    /// Adds text to the current value and returns the JSON that is known to follow; `is_end` says whether it is the last
    /// text.
    pub fn more(&mut self, text: &str, is_end: bool) -> String {
        let text = match is_end {
            true => text.strip_suffix('\n').unwrap_or(text),
            false => text,
        };
        if self.is_repeated {
            return String::new();
        }
        if self.kinds.is_text() {
            let quoted = Value::from(text).to_string();
            let end = quoted.len() - usize::from(!is_end);
            return quoted[1..end].to_owned();
        }
        self.value += text;
        match is_end {
            true => self.kinds.json(&self.value),
            false => String::new(),
        }
    }
}
