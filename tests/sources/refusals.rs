//! Malformed folders. Each is the small Granite with one error.

use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

use microgranite::error::Error;
use microgranite::sources::{self, Checkpoint, Reference};

use crate::{assert_refused, fixture, offline};

const BAD_MODEL: u8 = 65;
const NOT_FOUND: u8 = 66;

/// A copy of the small Granite that a test may damage.
pub struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self::of("granite-3-tiny")
    }

    /// A copy of another fixture.
    pub fn of(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "model.safetensors",
        ] {
            std::fs::copy(fixture(name).join(file), folder.path().join(file)).unwrap();
        }
        Self(folder)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.path(name), bytes).unwrap();
        self
    }

    fn remove(&self, name: &str) -> &Self {
        std::fs::remove_file(self.path(name)).unwrap();
        self
    }

    pub fn edit(&self, name: &str, edit: impl FnOnce(&mut Value)) -> &Self {
        let mut json = serde_json::from_slice(&std::fs::read(self.path(name)).unwrap()).unwrap();
        edit(&mut json);
        self.write(name, json.to_string())
    }

    pub fn open(&self) -> Result<Checkpoint, Error> {
        open(self.0.path())
    }

    #[track_caller]
    pub fn refused(&self, exit_code: u8, parts: &[&str]) -> &Self {
        assert_refused(self.open(), exit_code, parts);
        self
    }
}

fn open(path: &Path) -> Result<Checkpoint, Error> {
    sources::open(&Reference::Folder(path.into()), &offline())
}

/// A safetensors file with this header and `data` bytes of data.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// The file that every case below damages.
const FILE: &str = "model.safetensors";

#[test]
fn a_folder_that_is_not_one_is_not_found() {
    let folder = Folder::new();
    assert_refused(open(&folder.path("nowhere")), NOT_FOUND, &["nowhere"]);
}

#[test]
fn a_safetensors_file_without_a_whole_header_is_refused() {
    let folder = Folder::new();
    folder
        .write(FILE, [])
        .refused(BAD_MODEL, &[FILE, "file", "is empty"]);
    folder
        .write(FILE, [1, 2, 3])
        .refused(BAD_MODEL, &[FILE, "header", "too short"]);
    for length in [u64::MAX, 1 << 60, (16 << 20) + 1] {
        let bytes = length.to_le_bytes();
        folder
            .write(FILE, bytes)
            .refused(BAD_MODEL, &[FILE, "header", &length.to_string()]);
    }
    let longer_than_file = 100u64.to_le_bytes();
    folder
        .write(FILE, longer_than_file)
        .refused(BAD_MODEL, &[FILE, "header", "100 bytes of a file of 8"]);
    let mut not_text = with_header("{}", 0);
    not_text[8] = 0xff;
    folder
        .write(FILE, not_text)
        .refused(BAD_MODEL, &[FILE, "header"]);
    folder
        .write(FILE, with_header("{\"a\":", 0))
        .refused(BAD_MODEL, &[FILE, "header"]);
    folder
        .write(FILE, with_header("[]", 0))
        .refused(BAD_MODEL, &[FILE, "header"]);
    let nested = "[".repeat(100_000);
    folder
        .write(FILE, with_header(&nested, 0))
        .refused(BAD_MODEL, &[FILE, "header"]);
}

#[test]
fn a_tensor_whose_description_does_not_add_up_is_named() {
    let folder = Folder::new();
    let tensor = |entry: &str, data| with_header(&format!("{{\"w\":{entry}}}"), data);
    for (entry, data) in [
        (r#"{"dtype":"Q9","shape":[2],"data_offsets":[0,8]}"#, 8),
        (r#"{"dtype":"F32","shape":[2]}"#, 8),
        (r#"{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}"#, 8),
        (r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#, 8),
        (
            r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}"#,
            8,
        ),
        (r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#, 8),
        (r#"{"dtype":"F32","shape":[2],"data_offsets":[8,16]}"#, 16),
        (
            r#"{"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615]}"#,
            8,
        ),
    ] {
        folder
            .write(FILE, tensor(entry, data))
            .refused(BAD_MODEL, &[FILE, ": w: "]);
    }
    let overlapping = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    folder
        .write(FILE, with_header(overlapping, 12))
        .refused(BAD_MODEL, &[FILE, ": b: ", "overlaps"]);
    let integers = r#"{"dtype":"I64","shape":[1],"data_offsets":[0,8]}"#;
    folder
        .write(FILE, tensor(integers, 8))
        .refused(BAD_MODEL, &[FILE, ": w: ", "I64", "BF16"]);
}

#[test]
fn a_file_that_is_cut_off_or_too_long_is_refused_wherever_the_cut_is() {
    let folder = Folder::new();
    let whole = std::fs::read(folder.path(FILE)).unwrap();
    for length in [0, 1, 7, 8, 9, 1000, 4000, whole.len() / 2, whole.len() - 1] {
        folder
            .write(FILE, &whole[..length])
            .refused(BAD_MODEL, &[FILE]);
    }
    let mut longer = whole;
    longer.push(0);
    folder
        .write(FILE, longer)
        .refused(BAD_MODEL, &[FILE, "data"]);
}

#[test]
fn a_value_that_is_not_finite_is_refused_with_its_row_when_it_is_read() {
    let folder = Folder::new();
    let (nan, infinity) = (0x7fc0u16.to_le_bytes(), 0x7f80u16.to_le_bytes());
    for (bad, printed) in [(nan, "NaN"), (infinity, "inf")] {
        let mut values = [0u8; 2 * 4 * 3];
        values[2 * (2 * 3 + 1)..][..2].copy_from_slice(&bad);
        let view = TensorView::new(Dtype::BF16, vec![4, 3], &values).unwrap();
        folder.write(FILE, serialize([("w", view)], None).unwrap());
        let checkpoint = folder.open().unwrap();
        let tensors = checkpoint.tensors().unwrap();
        let mut out = [0.0; 6];
        tensors.read_rows("w", 0..2, &mut out).unwrap();
        let result = tensors.read_rows("w", 1..3, &mut out);
        assert_refused(
            result,
            BAD_MODEL,
            &[FILE, ": w: ", "row 2, column 1", printed],
        );
    }
}

#[test]
fn only_tensors_that_exist_have_rows_and_single_numbers_have_none() {
    let folder = Folder::new();
    let values: Vec<u8> = (0..8u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    let cube = TensorView::new(Dtype::F32, vec![2, 2, 2], &values).unwrap();
    let number = TensorView::new(Dtype::F32, vec![], &values[..4]).unwrap();
    let both = serialize([("cube", cube), ("number", number)], None).unwrap();
    folder.write(FILE, both);
    let checkpoint = folder.open().unwrap();
    let tensors = checkpoint.tensors().unwrap();
    let mut out = [0.0; 4];
    tensors.read_rows("cube", 1..3, &mut out).unwrap();
    assert_eq!(out, [2.0, 3.0, 4.0, 5.0]);
    assert_refused(
        tensors.read_rows("number", 0..1, &mut out[..1]),
        BAD_MODEL,
        &[FILE, "number", "no rows"],
    );
    assert_refused(
        tensors.read_rows("ball", 0..1, &mut out),
        BAD_MODEL,
        &[FILE, "ball"],
    );
}

#[test]
fn asking_for_rows_that_are_not_there_is_a_defect_and_not_a_panic() {
    let checkpoint = Folder::new().open().unwrap();
    let tensors = checkpoint.tensors().unwrap();
    let name = "model.norm.weight";
    let mut out = vec![0.0; 256];
    for (rows, length) in [(0..2, 256), (1..1, 256), (0..1, 255)] {
        assert_refused(
            tensors.read_rows(name, rows, &mut out[..length]),
            70,
            &[name],
        );
    }
}

const INDEX: &str = "model.safetensors.index.json";

/// Two shards of one tensor each, and their index.
fn sharded() -> Folder {
    let folder = Folder::new();
    folder.remove(FILE);
    let values = [0u8; 8];
    for (file, tensor) in [("one.safetensors", "a"), ("two.safetensors", "b")] {
        let view = TensorView::new(Dtype::F32, vec![2], &values).unwrap();
        folder.write(file, serialize([(tensor, view)], None).unwrap());
    }
    let weight_map = json!({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}});
    folder.write(INDEX, weight_map.to_string());
    folder
}

#[test]
fn shards_open_by_their_index_and_errors_name_the_shard() {
    let folder = sharded();
    let checkpoint = folder.open().unwrap();
    let tensors = checkpoint.tensors().unwrap();
    assert_eq!(tensors.names(), ["a", "b"]);
    assert_eq!(tensors.file("b"), folder.path("two.safetensors"));
    assert_eq!(tensors.file("c"), folder.path(INDEX));
    assert_eq!(tensors.stored_bytes(), 16);
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused() {
    let cases: [(&str, Value); 6] = [
        (
            "is not in the folder",
            json!({"a": "one.safetensors", "b": "three.safetensors"}),
        ),
        (
            "does not hold it",
            json!({"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}),
        ),
        (
            "does not hold it",
            json!({"a": "two.safetensors", "b": "two.safetensors"}),
        ),
        ("beside the index", json!({"a": "../one.safetensors"})),
        ("beside the index", json!({"a": "/etc/passwd"})),
        ("lists no tensors", json!({})),
    ];
    for (problem, weight_map) in cases {
        let folder = sharded();
        folder.write(INDEX, json!({"weight_map": weight_map}).to_string());
        folder.refused(BAD_MODEL, &[INDEX, problem]);
    }
    let folder = sharded();
    folder
        .write(INDEX, "{}")
        .refused(BAD_MODEL, &[INDEX, "weight_map"]);
    folder
        .write(INDEX, "not json")
        .refused(BAD_MODEL, &[INDEX, "JSON"]);
    folder
        .write(INDEX, r#"{"weight_map": {"a": 7}}"#)
        .refused(BAD_MODEL, &[INDEX, ": a: "]);
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let folder = sharded();
    std::fs::copy(
        folder.path("one.safetensors"),
        folder.path("three.safetensors"),
    )
    .unwrap();
    let weight_map = json!({"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "three.safetensors"}});
    folder.write(INDEX, weight_map.to_string());
    folder.refused(BAD_MODEL, &[".safetensors", ": a: ", "is also in"]);
}

#[test]
fn forms_that_are_not_read_are_refused_by_name_and_say_what_to_do() {
    let folder = Folder::new();
    folder.remove(FILE).refused(NOT_FOUND, &[FILE, INDEX]);
    folder
        .write("granite.safetensors", "")
        .refused(NOT_FOUND, &[FILE, "granite.safetensors", "call it"])
        .remove("granite.safetensors");
    for (file, form, instead) in [
        ("pytorch_model.bin", "pickle", "convert it to safetensors"),
        ("openvino_model.bin", "OpenVINO IR", "take the repository"),
        ("model.onnx", "ONNX", "take the repository"),
        ("tf_model.h5", "TensorFlow", "take the repository"),
        ("flax_model.msgpack", "Flax", "take the repository"),
        (
            "consolidated.safetensors",
            "Mistral's own",
            "take the repository",
        ),
        ("adapter_model.safetensors", "LoRA adapter", "merge it"),
    ] {
        let parts = [file, ": format: ", form, "cannot be read; ", instead];
        folder
            .write(file, "")
            .refused(BAD_MODEL, &parts)
            .remove(file);
    }
    // An adapter has no configuration of a model beside it.
    folder
        .remove("config.json")
        .write("adapter_config.json", "{}")
        .refused(BAD_MODEL, &["adapter_config.json", "LoRA adapter"]);
}

#[test]
fn a_file_of_a_folder_is_not_the_folder() {
    let folder = Folder::new();
    let whole = folder.path(FILE).parent().unwrap().display().to_string();
    assert_refused(
        open(&folder.path(FILE)),
        BAD_MODEL,
        &[FILE, "weights alone", "name the folder", &whole],
    );
    folder.write("model.onnx", "");
    assert_refused(open(&folder.path("model.onnx")), BAD_MODEL, &["ONNX"]);
    assert_refused(
        open(&folder.path("config.json")),
        NOT_FOUND,
        &["config.json", "neither a folder nor"],
    );
}

#[test]
fn weights_of_a_type_that_is_not_read_are_named() {
    let folder = Folder::new();
    for (dtype, bytes, form) in [("F8_E4M3", 2, "FP8"), ("U32", 8, "MLX"), ("I32", 8, "GPTQ")] {
        let header =
            format!(r#"{{"w":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,{bytes}]}}}}"#);
        folder
            .write(FILE, with_header(&header, bytes))
            .refused(BAD_MODEL, &[FILE, ": w: ", dtype, form, "unquantized"]);
    }
}

#[test]
fn a_name_that_is_no_path_is_answered_with_what_was_meant() {
    for (name, meant) in [
        (
            "ibm-granite/granite-3.3-2b-instruct",
            "hf:ibm-granite/granite-3.3-2b-instruct",
        ),
        ("granite3.3", "did you mean hf:ibm-granite/granite-3.3-2b"),
    ] {
        assert_refused(open(Path::new(name)), NOT_FOUND, &[name, meant]);
    }
}

#[test]
fn a_folder_with_gguf_files_beside_others_says_how_to_open_one() {
    let folder = Folder::new();
    folder.write("m.gguf", "").remove(FILE);
    folder.refused(NOT_FOUND, &[FILE, "m.gguf"]);
    folder
        .remove("config.json")
        .write("n.gguf", "")
        .refused(NOT_FOUND, &["config.json", "m.gguf"]);
    // The only one is opened.
    folder.remove("n.gguf").refused(65, &["m.gguf", "is empty"]);
    folder
        .remove("m.gguf")
        .refused(NOT_FOUND, &["config.json", "not found"]);
}

#[test]
fn a_configuration_that_is_not_an_object_is_refused() {
    let folder = Folder::new();
    for text in ["", "{", "[1]", "\"x\"", "{\"a\": Infinity}"] {
        folder
            .write("config.json", text)
            .refused(BAD_MODEL, &["config.json", "JSON"]);
    }
}

#[test]
fn end_of_text_ids_are_one_or_several_and_nothing_else() {
    let folder = Folder::new();
    let generation = "generation_config.json";
    folder.edit(generation, |json| json["eos_token_id"] = json!([0, 317]));
    assert_eq!(folder.open().unwrap().eos_token_ids, [0, 317]);
    for wrong in [json!("0"), json!(-1), json!([0, 1.5]), json!(1u64 << 32)] {
        folder.edit(generation, |json| json["eos_token_id"] = wrong);
        folder.refused(BAD_MODEL, &[generation, "eos_token_id"]);
    }
    folder.edit(generation, |json| json["eos_token_id"] = Value::Null);
    folder.edit("config.json", |json| json["eos_token_id"] = json!(5));
    assert_eq!(folder.open().unwrap().eos_token_ids, [5]);
    folder
        .remove(generation)
        .edit("config.json", |json| json["eos_token_id"] = json!([]));
    assert!(folder.open().unwrap().eos_token_ids.is_empty());
}

#[test]
fn a_tokenizer_that_is_not_a_byte_level_bpe_is_refused() {
    let file = "tokenizer.json";
    let folder = Folder::new();
    folder
        .edit(file, |json| json["decoder"] = Value::Null)
        .refused(BAD_MODEL, &[file, "decoder", "ByteLevel"]);
    let words = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"});
    folder
        .edit(file, |json| json["model"] = words)
        .refused(BAD_MODEL, &[file, "model", "BPE"]);
    folder.write(file, "{}").refused(BAD_MODEL, &[file]);
    folder.remove(file).refused(NOT_FOUND, &[file]);
}

#[test]
fn truncation_left_over_from_training_does_not_cut_prompts() {
    let folder = Folder::new();
    let truncation =
        json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    folder.edit("tokenizer.json", |json| json["truncation"] = truncation);
    let text = "A prompt that is longer than four tokens.";
    let tokenizer = folder.open().unwrap().tokenizer;
    let encoding = tokenizer.encode(text, false).unwrap();
    assert_eq!(tokenizer.decode(encoding.get_ids(), false).unwrap(), text);
}

#[test]
fn the_chat_template_comes_from_its_own_file_or_from_the_tokenizer_config() {
    let folder = Folder::new();
    let file = "tokenizer_config.json";
    let template = || folder.open().unwrap().chat_template;
    folder.write(file, "{}");
    assert_eq!(template(), None);
    folder.write(file, r#"{"chat_template": "one"}"#);
    assert_eq!(template().as_deref(), Some("one"));
    folder.write(file, r#"{"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "two"}]}"#);
    assert_eq!(template().as_deref(), Some("two"));
    folder.write("chat_template.jinja", "three");
    assert_eq!(template().as_deref(), Some("three"));
    folder
        .remove("chat_template.jinja")
        .write(file, r#"{"chat_template": 4}"#);
    folder.refused(BAD_MODEL, &[file, "chat_template"]);
}
