//! `microgranite pull`: downloads a model and prints its path.

use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};
use crate::sources::{self, Freshness, Reference, Settings};

/// Download a model into the cache and print its path.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model: a folder, a .gguf file, hf:OWNER/NAME[@REVISION][:LABEL], ollama:NAME[:TAG],
    /// oci://HOST/REPOSITORY[:TAG], or demo.
    ///
    /// For a hub repository, its safetensors are used, or else the GGUF file that is best for int8: Q8_0, then floats,
    /// then the most bits. :LABEL selects another, as in hf:OWNER/NAME:Q4_K_M. The address of a model's page on
    /// huggingface.co works too.
    ///
    /// A cached hub repository is updated to the branch's current commit; serve, in contrast, uses the cache as it is.
    #[arg(value_name = "REF")]
    reference: Reference,
}

/// Downloads the model and prints its path on standard output.
///
/// # Errors
/// [`Error::Unavailable`] when it cannot be downloaded, [`Error::NotFound`] when a local path does not exist.
pub fn run(args: Args, settings: &Settings) -> Result<()> {
    let local = sources::fetch(&args.reference, settings, Freshness::Newest)?;
    let path = local.path();
    let mut stdout = std::io::stdout().lock();
    let written = writeln!(stdout, "{}", path.display());
    written.map_err(|e| Error::io(Path::new("standard output"), e))
}
