//! A model of each supported format, in a folder that a test may damage.

use std::path::PathBuf;

use candle_core::quantized::GgmlDType;
use microgranite::error::Error;
use microgranite::int8::scheme::{Granularity, Mapping, Scheme};
use microgranite::sources::{self, Reference};
use microgranite::study::pack;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::gguf_granite::granite;
use crate::gguf_writer::Gguf;
use crate::{attempt, fixture, offline};

/// A format of model files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `config.json`, `tokenizer.json`, and bf16 weights in one file.
    Folder,
    /// The same with two files of weights and an index.
    Shards,
    Gguf,
    CompressedTensors,
    ZeroPoints,
    LlmInt8,
    /// Mamba-2 layers, and experts beside a shared layer.
    Hybrid,
    /// Attention, and experts alone.
    Experts,
    /// A packed folder, with all four kinds of tensors.
    Packed,
    /// The same of a hybrid.
    PackedHybrid,
}

pub const ALL: [Format; 10] = [
    Format::Folder,
    Format::Shards,
    Format::Gguf,
    Format::CompressedTensors,
    Format::ZeroPoints,
    Format::LlmInt8,
    Format::Hybrid,
    Format::Experts,
    Format::Packed,
    Format::PackedHybrid,
];

pub const CONFIG: &str = "config.json";
pub const TOKENIZER: &str = "tokenizer.json";
pub const WEIGHTS: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";
pub const GGUF: &str = "model.gguf";
pub const PACKED: &str = "model.int8.safetensors";
pub const QUANTIZATION: &str = "quantization.json";

/// Type, shape and bytes of a tensor.
pub type Stored = (Dtype, Vec<usize>, Vec<u8>);

pub struct Model {
    pub folder: TempDir,
    format: Format,
}

impl Model {
    pub fn new(format: Format) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = Self { folder, format };
        let copy = |from: &str, files: &[&str]| {
            for file in files {
                std::fs::copy(fixture(from).join(file), model.path(file)).unwrap();
            }
        };
        let all = [CONFIG, TOKENIZER, "generation_config.json", WEIGHTS];
        match format {
            Format::Folder => copy("granite-3-tiny", &all),
            Format::CompressedTensors => copy("granite-3-tiny-w8a8", &all),
            Format::ZeroPoints => copy("granite-4-dense-tiny-w8a8-zp", &all),
            Format::LlmInt8 => copy("granite-3-tiny-llm-int8", &all),
            Format::Hybrid => copy("granite-4-hybrid-moe-tiny", &all),
            Format::Experts => copy("granite-3-moe-tiny", &all),
            Format::Shards => {
                copy("granite-3-tiny", &all);
                model.split();
            }
            Format::Gguf => granite(GgmlDType::Q8_0).write(&model.path(GGUF)),
            Format::Packed | Format::PackedHybrid => {
                let source = match format {
                    Format::Packed => "granite-3-tiny",
                    _ => "granite-4-hybrid-moe-tiny",
                };
                copy(source, &all[..3]);
                let source = Reference::Folder(fixture(source));
                let checkpoint = sources::open(&source, &offline()).unwrap();
                let scheme = Scheme {
                    mapping: Mapping::Affine,
                    granularity: Granularity::Group,
                    ..Scheme::default()
                };
                let plan = pack::Plan {
                    scheme,
                    ..pack::Plan::default()
                };
                pack::write(&checkpoint, &plan, 1, model.folder.path(), &mut |_, _| ()).unwrap();
            }
        }
        model
    }

    /// Every other tensor goes to the second file.
    fn split(&self) {
        let bytes = self.read(WEIGHTS);
        let views = SafeTensors::deserialize(&bytes).unwrap();
        let mut names = views.names();
        names.sort();
        let mut weight_map = serde_json::Map::new();
        for (half, file) in ["one.safetensors", "two.safetensors"]
            .into_iter()
            .enumerate()
        {
            let own = || names.iter().skip(half).step_by(2);
            let tensors = own().map(|name| (*name, views.tensor(name).unwrap()));
            self.write(file, serialize(tensors, None).unwrap());
            weight_map.extend(own().map(|name| ((*name).to_owned(), json!(file))));
        }
        self.write(
            INDEX,
            json!({"metadata": {}, "weight_map": weight_map}).to_string(),
        );
        std::fs::remove_file(self.path(WEIGHTS)).unwrap();
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    pub fn read(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.path(file)).unwrap()
    }

    pub fn write(&self, file: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(file), bytes).unwrap();
    }

    /// Opens and runs it, and checks what must hold for every model.
    pub fn attempt(&self) -> Result<(), Error> {
        let folder = self.folder.path();
        let reference = match self.format {
            Format::Gguf => Reference::Gguf(self.path(GGUF)),
            _ => Reference::Folder(folder.into()),
        };
        attempt(&reference, folder)
    }

    /// Changes a JSON file.
    pub fn edit(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let mut json = serde_json::from_slice(&self.read(file)).unwrap();
        change(&mut json);
        self.write(file, json.to_string());
    }

    /// Changes the bytes of a file.
    pub fn damage(&self, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.read(file);
        change(&mut bytes);
        self.write(file, bytes);
    }

    /// Changes the header of a safetensors file as text, and its length field.
    pub fn header(&self, file: &str, change: impl FnOnce(String) -> String) {
        self.damage(file, |bytes| {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let header = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap();
            let header = change(header);
            let mut changed = (header.len() as u64).to_le_bytes().to_vec();
            changed.extend(header.as_bytes());
            changed.extend(&bytes[8 + length..]);
            *bytes = changed;
        });
    }

    /// Changes a tensor of a safetensors file and keeps the header consistent.
    pub fn tensor(&self, file: &str, name: &str, change: impl FnOnce(Stored) -> Stored) {
        let bytes = self.read(file);
        let views = SafeTensors::deserialize(&bytes).unwrap();
        let view = views.tensor(name).unwrap();
        let (dtype, shape, data) =
            change((view.dtype(), view.shape().to_vec(), view.data().to_vec()));
        let changed = TensorView::new(dtype, shape, &data).unwrap();
        let others = views.iter().filter(|(other, _)| *other != name);
        self.write(
            file,
            serialize(others.chain([(name, changed)]), None).unwrap(),
        );
    }

    /// Changes one thing in the GGUF file.
    pub fn gguf(&self, change: impl FnOnce(&mut Gguf)) {
        let mut gguf = granite(GgmlDType::Q8_0);
        change(&mut gguf);
        gguf.write(&self.path(GGUF));
    }
}

#[test]
fn every_format_loads_and_runs_before_it_is_damaged() {
    for format in ALL {
        if let Err(error) = Model::new(format).attempt() {
            panic!("{format:?}: {error}");
        }
    }
}
