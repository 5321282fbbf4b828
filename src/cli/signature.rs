//! The flags for a publisher's signature.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::sources::Checkpoint;
use crate::sources::signature::{self, PublicKey, SIGNATURE};
use crate::telemetry::SignatureState;

/// Whether a model must be signed, and by whom.
#[derive(Debug, clap::Args)]
pub struct SignatureArgs {
    /// Whether to verify the publisher's signature of a folder of safetensors: the file model.sig in the form of OpenSSF's
    /// Model Signing, made with the key of --signature-key. off does not look at it, if-present refuses a wrong one, and
    /// required also refuses a model without one. All files are read for it.
    #[arg(
        long,
        env = "MICROGRANITE_VERIFY_SIGNATURE",
        value_enum,
        value_name = "WHEN",
        default_value_t,
        requires_ifs = [("if-present", "signature_key"), ("required", "signature_key")]
    )]
    verify_signature: When,

    /// A PEM file with the publisher's public key, on the curve P-256 or P-384.
    #[arg(long, env = "MICROGRANITE_SIGNATURE_KEY", value_name = "FILE")]
    signature_key: Option<PathBuf>,
}

/// When a signature is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum When {
    /// Never.
    #[default]
    Off,
    /// If there is one.
    IfPresent,
    /// Always: there must be one.
    Required,
}

impl SignatureArgs {
    /// The key, if signatures are verified.
    ///
    /// # Errors
    /// Those of [`PublicKey::read`].
    pub fn key(&self) -> Result<Option<PublicKey>> {
        let file: Option<&Path> = self.signature_key.as_deref();
        let file = file.filter(|_| self.verify_signature != When::Off);
        file.map(PublicKey::read).transpose()
    }

    /// Verifies the signature of a model.
    ///
    /// # Errors
    /// Those of [`signature::verify`], and [`Error::BadModel`] for a missing signature that is required.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<SignatureState> {
        let Some(key) = self.key()? else {
            return Ok(SignatureState::Off);
        };
        if signature::verify(checkpoint, &key)? {
            tracing::info!(
                model = checkpoint.name,
                "the publisher has signed these files"
            );
            return Ok(SignatureState::Verified);
        }
        if self.verify_signature == When::Required {
            let problem = "is missing, or the model is no folder of safetensors; --verify-signature required wants it";
            return Err(Error::bad_model(
                &checkpoint.config_file,
                SIGNATURE,
                problem,
            ));
        }
        Ok(SignatureState::Absent)
    }
}
