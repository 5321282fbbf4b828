//! Model files and manifests, from disks, hubs and registries.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use microgranite::error::Error;
use microgranite::model::ModelConfig;
use microgranite::sources::generation::GenerationDefaults;
use microgranite::sources::{self, Image, Manifest, Reference, Settings};
use microgranite::text::Tokenizer;
use tempfile::TempDir;

const FIXTURE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/fixtures/granite-3-tiny"
);

/// A file in a folder of this process.
pub fn file(name: &str) -> PathBuf {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER
        .get_or_init(|| tempfile::tempdir().expect("a folder"))
        .path()
        .join(name)
}

pub fn tokenizer_of_the_fixture() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let file = Path::new(FIXTURE).join("tokenizer.json");
        let inner = tokenizers::Tokenizer::from_file(&file).expect("the fixture's tokenizer");
        Tokenizer::new(inner, &file).expect("it has all bytes")
    })
}

/// Opens the fixture with one file replaced.
fn open_with(name: &str, bytes: &[u8]) {
    static COPIED: OnceLock<PathBuf> = OnceLock::new();
    let folder = COPIED.get_or_init(|| {
        let folder = file("model");
        std::fs::create_dir(&folder).expect("a folder");
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            std::fs::copy(Path::new(FIXTURE).join(name), folder.join(name)).expect("a copy");
        }
        folder
    });
    std::fs::write(folder.join(name), bytes).expect("it is written");
    open(&Reference::Folder(folder.clone()));
}

/// What `serve` does before it loads weights.
fn open(reference: &Reference) {
    let offline = |name: &str| (name == "HF_HUB_OFFLINE").then(|| "1".to_owned());
    let outcome = sources::open(reference, &Settings::from_variables(offline, false)).and_then(
        |checkpoint| {
            ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config)?;
            Tokenizer::new(checkpoint.tokenizer.clone(), &checkpoint.config_file)
        },
    );
    if let Err(error) = outcome {
        is_told_in_a_line(&error);
    }
}

fn is_told_in_a_line(error: &Error) {
    assert!([65, 66, 74].contains(&error.exit_code()), "{error}");
    assert_eq!(error.to_string().lines().count(), 1, "{error:?}");
}

pub fn safetensors(bytes: &[u8]) {
    open_with("model.safetensors", bytes);
}

pub fn gguf(bytes: &[u8]) {
    let file = file("model.gguf");
    std::fs::write(&file, bytes).expect("it is written");
    open(&Reference::Gguf(file));
}

pub fn config(bytes: &[u8]) {
    let Ok(json) = serde_json::from_slice(bytes) else {
        return;
    };
    let file = Path::new("config.json");
    for outcome in [
        ModelConfig::from_json(file, &json).err(),
        GenerationDefaults::of_json(file, &json).err(),
    ] {
        outcome.iter().for_each(is_told_in_a_line);
    }
}

pub fn tokenizer(bytes: &[u8]) {
    open_with("tokenizer.json", bytes);
}

/// The manifest of an image, and names of images.
pub fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::parse(bytes) {
        let _refused = manifest.for_this_machine();
        let _refused = manifest.plan("model");
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        for image in [Image::of_ollama(text), Image::of_oci(text)]
            .into_iter()
            .flatten()
        {
            // It becomes part of a path and of a URL.
            assert!(!image.served_name().contains(['/', '\0', '\n']), "{text:?}");
        }
        let _refused = text.parse::<Reference>();
    }
}
