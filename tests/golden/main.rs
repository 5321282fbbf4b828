//! The f32 reference against recorded outputs of Hugging Face transformers, and Q8_0 against the f32 reference.
//!
//! The tests on real weights need the demo model in the user's cache and are ignored unless asked for.

mod accuracy;
mod bits;
mod demo;
mod gguf;
mod tiny;

use std::path::{Path, PathBuf};

use microgranite::model::{self, ModelConfig};
use microgranite::sources::{self, Checkpoint};
use microgranite::study::reference::{Arithmetic, Reference};

/// A test file, by its path below `tests`.
fn test_file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(path)
}

/// The model that `source` (a folder or `demo`) names, with the user's own cache settings.
fn checkpoint(source: &sources::Reference) -> Checkpoint {
    let settings = sources::Settings::from_variables(|name| std::env::var(name).ok(), false);
    sources::open(source, &settings).expect("the checkpoint opens")
}

fn reference(checkpoint: &Checkpoint, arithmetic: Arithmetic) -> Reference {
    let config = ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config)
        .expect("the configuration is read");
    Reference::load(&config, checkpoint.tensors().unwrap(), arithmetic).expect("the weights load")
}

/// How tiny models are loaded.
fn settings() -> model::Settings {
    model::Settings {
        threads: 2,
        slots: 1,
        snapshots: 0,
        kv_bytes: 4 << 20,
        context: None,
        weights: model::Placement::default(),
    }
}
