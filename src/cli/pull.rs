//! `microgranite pull`: fetch a model and say where it is.

use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};
use crate::sources::{self, Freshness, Reference, Settings};

/// Fetch a model into the cache and print its path.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model: a folder, a .gguf file, hf:OWNER/NAME[@REVISION][:LABEL], or demo.
    ///
    /// Of a hub repository the safetensors are taken, or else the GGUF file that is best for int8: Q8_0, then floats, then the
    /// most bits. :LABEL takes another, as in hf:OWNER/NAME:Q4_K_M. A model's page on huggingface.co can be named as well.
    ///
    /// A hub repository that is in the cache already is compared with the hub and brought up to date; serve uses it as it is.
    #[arg(value_name = "REF")]
    reference: Reference,
}

/// Fetches the model and prints its path on standard output.
///
/// # Errors
/// [`Error::Unavailable`] when it cannot be fetched, [`Error::NotFound`] when a local path does not exist.
pub fn run(args: Args, settings: &Settings) -> Result<()> {
    let local = sources::fetch(&args.reference, settings, Freshness::Newest)?;
    let path = local.path();
    let mut stdout = std::io::stdout().lock();
    let written = writeln!(stdout, "{}", path.display());
    written.map_err(|e| Error::io(Path::new("standard output"), e))
}
