//! Damaged model files. Whatever is wrong, a model either loads and runs, or is refused with a documented exit code in
//! one line that names the file and the field; nothing panics, and no file makes the program allocate much more than
//! its own size. `classes.rs` lists the known kinds of damage; `mutations.rs` adds random damage.

mod classes;
mod hybrids;
mod model;
mod mutations;

#[path = "../sources/gguf_granite.rs"]
mod gguf_granite;
#[path = "../sources/gguf_writer.rs"]
#[expect(dead_code, reason = "the tests of `sources` use the rest")]
mod gguf_writer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use microgranite::error::Error;
use microgranite::model::{self as granite, Forward, ModelConfig, PAGE_TOKENS, Placement, Span};
use microgranite::sources::{self, Reference, Settings};
use microgranite::text::Tokenizer;
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// The memory that opening and running a small model may allocate beyond the size of its files.
const BEYOND_FILES: usize = 64 << 20;

/// A checkpoint that comes with the repository.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// Settings that never reach the network.
fn offline() -> Settings {
    let offline = |name: &str| (name == "HF_HUB_OFFLINE").then(|| "1".to_owned());
    Settings::from_variables(offline, false)
}

/// Does what `serve` does with a model before and for the first request.
fn open_and_run(reference: &Reference) -> Result<(), Error> {
    let checkpoint = sources::open(reference, &offline())?;
    let config = ModelConfig::from_json(&checkpoint.config_file, &checkpoint.config)?;
    Tokenizer::new(checkpoint.tokenizer.clone(), &checkpoint.config_file)?;
    let settings = granite::Settings {
        threads: 1,
        slots: 4,
        snapshots: 0,
        kv_bytes: granite::footprint(&config).kv_page,
        context: None,
        weights: Placement::Mmap,
    };
    let mut model = granite::load(&checkpoint, &settings, &mut |_, _| ())?;
    let tokens: Vec<u32> = (0..5.min(config.vocab_size as u32)).collect();
    let span = Span {
        tokens: &tokens[..tokens.len().min(model.context_length()).min(PAGE_TOKENS)],
        start: 0,
        pages: &[0],
        slot: 0,
        certain: usize::MAX,
        restore: None,
        saves: &[],
        logit_rows: 1,
    };
    assert_eq!(model.forward(&[span]).len(), config.vocab_size);
    Ok(())
}

/// Opens and runs the model whose files are in `folder`. Checks everything except which file and field an error names.
fn attempt(reference: &Reference, folder: &Path) -> Result<(), Error> {
    // One at a time, because the allocator counts for the whole process.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let files = std::fs::read_dir(folder).unwrap();
    let size: u64 = files
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let outcome = catch_unwind(AssertUnwindSafe(|| open_and_run(reference)));
    let allocated = ALLOCATOR.peak_usage().saturating_sub(before);
    assert!(
        allocated <= size as usize + BEYOND_FILES,
        "{allocated} bytes were allocated for files of {size}"
    );
    let result = outcome.expect("a panic");
    if let Err(error) = &result {
        let line = error.to_string();
        assert_eq!(line.lines().count(), 1, "{line}");
        let (file, field) = match error {
            Error::BadModel { file, field, .. } => (file, field.as_str()),
            // A missing file has no fields.
            Error::NotFound { path, .. } => (path, "file"),
            _ => panic!("exit code {}: {line}", error.exit_code()),
        };
        assert!(
            file.starts_with(folder) && !field.is_empty(),
            "no file or field: {line}"
        );
    }
    result
}
