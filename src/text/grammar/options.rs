//! The options of the grammar library in a schema.

use serde_json::{Value, json};

/// The keyword in a schema that holds the library's own options.
pub const OPTIONS: &str = "x-guidance";

/// The schema with the library's options. The default is one space after commas and colons and no other white space:
/// Python writes JSON like this, so models have seen it often, and answers do not waste tokens on white space.
pub fn with_options(mut schema: Value, options: Option<Value>) -> Value {
    let options = options.unwrap_or_else(|| {
        json!({
            "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ", "lenient": true,
        })
    });
    if let Some(fields) = schema.as_object_mut() {
        fields.insert(OPTIONS.to_owned(), options);
    }
    schema
}
