//! One program for all targets, because linking it takes longer than fuzzing for a moment: the variable `TARGET` names
//! the target. `fuzz/run.sh` builds and runs it.

#![no_main]

mod answers;
mod files;
mod requests;
mod templates;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

/// A target takes any bytes and must neither panic nor hang.
type Target = fn(&[u8]);

const TARGETS: &[(&str, Target)] = &[
    ("requests", requests::parse),
    ("access", requests::access),
    ("grammars", requests::grammars),
    ("templates", templates::any_template),
    ("conversations", templates::any_conversation),
    ("safetensors", files::safetensors),
    ("gguf", files::gguf),
    ("config", files::config),
    ("tokenizer", files::tokenizer),
    ("manifest", files::manifest),
    ("answers", answers::decode_and_stop),
    ("calls", answers::calls_and_thoughts),
];

fn target() -> Target {
    static TARGET: OnceLock<Target> = OnceLock::new();
    *TARGET.get_or_init(|| {
        let name = std::env::var("TARGET").unwrap_or_default();
        let known = TARGETS.iter().find(|(known, _)| *known == name);
        let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
        known
            .unwrap_or_else(|| panic!("TARGET must be one of {}", names.join(", ")))
            .1
    })
}

fuzz_target!(|bytes: &[u8]| target()(bytes));
