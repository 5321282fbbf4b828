//! Writes valid and invalid GGUF files, without the code under test.

use std::path::Path;

/// The parts of a GGUF file. Each can be changed before writing, also to invalid values.
#[derive(Clone)]
pub struct Gguf {
    pub version: u32,
    /// Key, value type, value.
    pub entries: Vec<(String, u32, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
    pub alignment: u64,
    /// Overrides the true number in the header.
    pub claimed_entries: Option<u64>,
    /// Overrides the true number in the header.
    pub claimed_tensors: Option<u64>,
}

#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    /// In GGUF's order: values per row first.
    pub dimensions: Vec<u64>,
    pub kind: u32,
    pub data: Vec<u8>,
    /// Overrides the true offset in the header.
    pub claimed_offset: Option<u64>,
}

pub const U8: u32 = 0;
pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const F32: u32 = 6;
pub const BOOL: u32 = 7;
pub const TEXT: u32 = 8;
pub const ARRAY: u32 = 9;

/// A text as GGUF writes it.
pub fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// An array of elements that are already written.
pub fn array(kind: u32, elements: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend((elements.len() as u64).to_le_bytes());
    bytes.extend(elements.concat());
    bytes
}

impl Gguf {
    pub fn new() -> Self {
        Self {
            version: 3,
            entries: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            claimed_entries: None,
            claimed_tensors: None,
        }
    }

    /// Sets a key, instead of an earlier value if there is one.
    pub fn set(&mut self, key: &str, kind: u32, value: Vec<u8>) -> &mut Self {
        self.entries.retain(|entry| entry.0 != key);
        self.entries.push((key.into(), kind, value));
        self
    }

    pub fn set_text(&mut self, key: &str, value: &str) -> &mut Self {
        self.set(key, TEXT, text(value))
    }

    pub fn set_u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.set(key, U32, value.to_le_bytes().into())
    }

    pub fn set_f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.set(key, F32, value.to_le_bytes().into())
    }

    pub fn set_texts(&mut self, key: &str, values: &[&str]) -> &mut Self {
        let elements: Vec<Vec<u8>> = values.iter().map(|value| text(value)).collect();
        self.set(key, ARRAY, array(TEXT, &elements))
    }

    pub fn remove(&mut self, key: &str) -> &mut Self {
        self.entries.retain(|entry| entry.0 != key);
        self
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors
            .iter_mut()
            .find(|tensor| tensor.name == name)
            .unwrap()
    }

    pub fn add_tensor(
        &mut self,
        name: &str,
        dimensions: &[u64],
        kind: u32,
        data: Vec<u8>,
    ) -> &mut Self {
        self.tensors.push(Tensor {
            name: name.into(),
            dimensions: dimensions.into(),
            kind,
            data,
            claimed_offset: None,
        });
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        let tensors = self.tensors.len() as u64;
        bytes.extend(self.claimed_tensors.unwrap_or(tensors).to_le_bytes());
        let entries = self.entries.len() as u64;
        bytes.extend(self.claimed_entries.unwrap_or(entries).to_le_bytes());
        for (key, kind, value) in &self.entries {
            bytes.extend(text(key));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            let offset = tensor.claimed_offset.unwrap_or(data.len() as u64);
            bytes.extend(text(&tensor.name));
            bytes.extend((tensor.dimensions.len() as u32).to_le_bytes());
            for dimension in &tensor.dimensions {
                bytes.extend(dimension.to_le_bytes());
            }
            bytes.extend(tensor.kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            data.extend(&tensor.data);
            pad(&mut data, self.alignment);
        }
        if !self.tensors.is_empty() {
            pad(&mut bytes, self.alignment);
        }
        bytes.extend(data);
        bytes
    }

    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes()).unwrap();
    }
}

fn pad(bytes: &mut Vec<u8>, alignment: u64) {
    bytes.resize(bytes.len().next_multiple_of(alignment as usize), 0);
}
