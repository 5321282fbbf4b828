//! Resolves the references in a JSON schema.

use std::collections::HashMap;

use serde_json::Value;

/// A document and the targets of the references found in it so far, by their addresses. A target may be needed twice,
/// as an object that allows further properties and as one that does not.
pub struct Document<'a> {
    root: &'a Value,
    pub targets: HashMap<(usize, bool), usize>,
    pub pending: Vec<(&'a Value, bool, usize)>,
    /// Schemas by `$anchor` and `$id`; filled in when first needed.
    names: Option<HashMap<&'a str, &'a Value>>,
}

impl<'a> Document<'a> {
    /// A document in which no reference has been found yet.
    pub fn new(root: &'a Value) -> Self {
        Self {
            root,
            targets: HashMap::new(),
            pending: Vec::new(),
            names: None,
        }
    }

    /// The target of a reference.
    ///
    /// # Errors
    /// When the target does not exist.
    pub fn resolve(&mut self, reference: &Value) -> Result<&'a Value, String> {
        let reference = reference.as_str().ok_or("a '$ref' is a string")?;
        let (base, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let shown: String = reference.chars().take(64).collect();
        let nowhere = || format!("the reference '{shown}' leads to nothing in the schema");
        let mut target = self.root;
        if !base.is_empty() && self.root.get("$id").and_then(Value::as_str) != Some(base) {
            target = self.named(base).ok_or_else(nowhere)?;
        }
        let fragment = percent_decoded(fragment);
        if fragment.is_empty() || fragment.starts_with('/') {
            target.pointer(&fragment).ok_or_else(nowhere)
        } else {
            self.named(&fragment).ok_or_else(nowhere)
        }
    }

    fn named(&mut self, name: &str) -> Option<&'a Value> {
        let names = self.names.get_or_insert_with(|| {
            let mut names = HashMap::new();
            let mut to_visit = vec![self.root];
            while let Some(value) = to_visit.pop() {
                match value {
                    Value::Array(values) => to_visit.extend(values),
                    Value::Object(fields) => {
                        for keyword in ["$anchor", "$dynamicAnchor", "$id"] {
                            if let Some(name) = fields.get(keyword).and_then(Value::as_str) {
                                names.entry(name).or_insert(value);
                            }
                        }
                        to_visit.extend(fields.values());
                    }
                    _ => {}
                }
            }
            names
        });
        names.get(name).copied()
    }
}

/// Decodes the percent-encoding of a fragment; a `%` that does not begin a valid escape stays.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match byte {
            Some(byte) if first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
