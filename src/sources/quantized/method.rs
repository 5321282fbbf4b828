//! Reads `quantization_config`: which method produced the codes of a folder, and whether it is supported.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::sources::forms::{self, Form};

/// The format of a folder's codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `compressed-tensors`, `int-quantized`, with one scale per row.
    CompressedTensors {
        /// Whether zero points may be missing.
        symmetric: bool,
    },
    /// `bitsandbytes` in eight bits.
    LlmInt8,
}

impl Method {
    /// Reads the `quantization_config` of `config`, which is `file`; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::BadModel`] naming the key whose value is not supported.
    pub fn read(file: &Path, config: &Value) -> Result<Option<Self>> {
        const KEY: &str = "quantization_config";
        let fields = Fields {
            file,
            json: &config[KEY],
            path: KEY.into(),
        };
        // MLX states its bits under its own key, and often under this one as well.
        for key in ["quantization", KEY] {
            let bits = &config[key]["bits"];
            if bits.is_number() && config[key]["quant_method"].is_null() {
                return Err(forms::MLX.refusal(file, &format!("{key}.bits")));
            }
        }
        if fields.json.is_null() {
            return Ok(None);
        }
        fields.object()?;
        match fields.json["quant_method"].as_str() {
            Some("compressed-tensors") => compressed_tensors(&fields).map(Some),
            Some("bitsandbytes") => llm_int8(&fields).map(Some),
            method => {
                const NAME: &str = "quant_method";
                if let Some(form) = method.and_then(Form::by_method) {
                    return Err(fields.bad(NAME, &form.problem()));
                }
                let expected = "expected compressed-tensors or bitsandbytes";
                Err(fields.is_but(NAME, &format!("{expected}; {}", forms::UNQUANTIZED)))
            }
        }
    }

    /// A short name for messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CompressedTensors { symmetric: true } => "compressed-tensors, symmetric",
            Self::CompressedTensors { symmetric: false } => "compressed-tensors, with zero points",
            Self::LlmInt8 => "LLM.int8 of bitsandbytes",
        }
    }
}

fn compressed_tensors(fields: &Fields<'_>) -> Result<Method> {
    fields.format()?;
    fields.one_of("quantization_status", &["compressed"])?;
    fields.absent("kv_cache_scheme")?;
    fields.absent("transform_config")?;
    let sparsity = fields.under("sparsity_config");
    if !sparsity.is_empty() {
        sparsity.object()?;
        sparsity.one_of("format", &["dense"])?;
    }
    let groups = fields.under("config_groups");
    let mut symmetric = None;
    for name in groups.object()?.keys() {
        let group = groups.under(name);
        group.object()?;
        group.format()?;
        group.absent("output_activations")?;
        activations(&group.under("input_activations"))?;
        let of_group = weights(&group.under("weights"))?;
        if *symmetric.get_or_insert(of_group) != of_group {
            return Err(group.bad(
                "weights.symmetric",
                "differs between groups, expected the same in all",
            ));
        }
    }
    let symmetric =
        symmetric.ok_or_else(|| groups.bad("", "is empty, expected at least one group"))?;
    Ok(Method::CompressedTensors { symmetric })
}

/// Checks how the weights were quantized; returns whether symmetrically.
fn weights(fields: &Fields<'_>) -> Result<bool> {
    fields.object()?;
    fields.eight_bits()?;
    fields.one_of("strategy", &["channel", "tensor"])?;
    fields.flag("dynamic", false)?;
    for name in ["group_size", "block_structure"] {
        fields.absent(name)?;
    }
    // The order in which columns were rounded leaves no trace in the file; only groups of reordered columns would.
    if fields.json["actorder"] != false {
        fields.one_of("actorder", &["weight", "static"])?;
    }
    match &fields.json["symmetric"] {
        Value::Null => Ok(true),
        Value::Bool(symmetric) => Ok(*symmetric),
        _ => Err(fields.is_but("symmetric", "expected true or false")),
    }
}

/// Activations are always quantized dynamically here; precomputed scales would be ignored.
fn activations(fields: &Fields<'_>) -> Result<()> {
    if fields.json.is_null() {
        return Ok(());
    }
    fields.object()?;
    fields.eight_bits()?;
    match fields.json["dynamic"] {
        Value::Bool(true) => Ok(()),
        _ => Err(fields.is_but(
            "dynamic",
            "expected true: static activations are not supported",
        )),
    }
}

fn llm_int8(fields: &Fields<'_>) -> Result<Method> {
    for name in ["load_in_4bit", "_load_in_4bit"] {
        if fields.json[name] == true {
            return Err(fields.bad(name, &forms::BITSANDBYTES_4BIT.problem()));
        }
    }
    fields.flag("llm_int8_has_fp16_weight", false)?;
    match fields.json["load_in_8bit"] {
        Value::Bool(true) => Ok(Method::LlmInt8),
        _ => Err(fields.is_but("load_in_8bit", "expected true")),
    }
}

/// An object of the configuration, and its path for errors.
struct Fields<'a> {
    file: &'a Path,
    json: &'a Value,
    path: String,
}

impl<'a> Fields<'a> {
    fn under(&self, name: &str) -> Self {
        Self {
            file: self.file,
            json: &self.json[name],
            path: format!("{}.{name}", self.path),
        }
    }

    fn object(&self) -> Result<&'a serde_json::Map<String, Value>> {
        let object = self.json.as_object();
        object.ok_or_else(|| self.bad("", "is not an object, expected one"))
    }

    /// Null, or an object without fields.
    fn is_empty(&self) -> bool {
        self.json.is_null() || self.json.as_object().is_some_and(serde_json::Map::is_empty)
    }

    /// Refuses a `format` other than int8 in plain rows, with its name if it is known.
    fn format(&self) -> Result<()> {
        const NAME: &str = "format";
        match self.json[NAME].as_str().and_then(Form::by_format) {
            Some(form) => Err(self.bad(NAME, &form.problem())),
            None => self.one_of(NAME, &["int-quantized"]),
        }
    }

    /// Refuses a field that is neither absent nor empty.
    fn absent(&self, name: &str) -> Result<()> {
        let empty = self.under(name).is_empty() || self.json[name] == Value::Bool(false);
        match empty {
            true => Ok(()),
            false => Err(self.is_but(name, "expected none")),
        }
    }

    /// Refuses a text that is not one of `expected`; an absent field means the first of them.
    fn one_of(&self, name: &str, expected: &[&str]) -> Result<()> {
        match &self.json[name] {
            Value::Null => Ok(()),
            Value::String(text) if expected.contains(&text.as_str()) => Ok(()),
            _ => Err(self.is_but(name, &format!("expected {}", expected.join(" or ")))),
        }
    }

    fn flag(&self, name: &str, expected: bool) -> Result<()> {
        match self.json[name] {
            Value::Null => Ok(()),
            Value::Bool(value) if value == expected => Ok(()),
            _ => Err(self.is_but(name, &format!("expected {expected}"))),
        }
    }

    fn eight_bits(&self) -> Result<()> {
        if self.json["num_bits"] != 8 {
            return Err(self.is_but("num_bits", "expected 8"));
        }
        self.one_of("type", &["int"])
    }

    fn is_but(&self, name: &str, expected: &str) -> Error {
        // One line on a terminal, whatever the file holds.
        const SHOWN_CHARS: usize = 60;
        let shown: String = self.json[name]
            .to_string()
            .chars()
            .take(SHOWN_CHARS)
            .collect();
        self.bad(name, &format!("is {shown}, {expected}"))
    }

    fn bad(&self, name: &str, problem: &str) -> Error {
        let field = match name {
            "" => self.path.clone(),
            _ => format!("{}.{name}", self.path),
        };
        Error::bad_model(self.file, field, problem)
    }
}
