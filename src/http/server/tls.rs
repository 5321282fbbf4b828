//! The server's certificate and key, read from files that are renewed while it serves.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use tokio_rustls::rustls;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::error::{Error, Result};
use crate::http::app::unix_seconds;
use crate::http::secret_file::{self, Stamp, stamp_of};
use crate::telemetry::Metrics;

/// The files that TLS needs, all in PEM form.
#[derive(Debug, Clone)]
pub struct Files {
    /// The certificate, followed by those that lead to a root.
    pub certificate: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
    /// If given, a client must prove that one of these authorities has issued a certificate for it.
    pub client_ca: Option<PathBuf>,
}

/// The settings of TLS for new connections.
pub struct Tls {
    files: Files,
    metrics: Arc<Metrics>,
    current: RwLock<Current>,
}

/// What was read last.
struct Current {
    config: Arc<ServerConfig>,
    /// The stamps of the files when they were read, or when they turned out unusable.
    stamps: Stamps,
}

type Stamps = [Option<Stamp>; 3];

/// Bytes that a connection takes for TLS, beside those without: a record that is being read, one that is being written
/// and its plain text, of 16 KiB each, and the keys.
pub const TLS_BYTES: usize = 64 << 10;

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a file that cannot be read, [`Error::Config`] for one that holds something else, and for
    /// a key that is not the certificate's.
    pub fn read(files: Files, metrics: Arc<Metrics>) -> Result<Self> {
        let stamps = files.stamps();
        let config = files.read(&metrics)?;
        Ok(Self {
            files,
            metrics,
            current: RwLock::new(Current { config, stamps }),
        })
    }

    /// Reads the files again if one has changed, or in any case if `always`. If they have become unusable, what was
    /// read before stays in use, and an error is logged. Connections that are open are not touched.
    pub fn reload(&self, always: bool) {
        let stamps = self.files.stamps();
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let is_same = current.stamps == stamps;
        drop(current);
        if is_same && !always {
            return;
        }
        let read = self.files.read(&self.metrics);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        // Also when it failed: that is logged once, not at every check.
        current.stamps = stamps;
        match read {
            Ok(config) => {
                current.config = config;
                tracing::info!("the certificate and its key were read again");
            }
            Err(error) => {
                self.metrics.tls_reload_failures_total.inc();
                tracing::error!(%error, "the new certificate cannot be used; the old one stays");
            }
        }
    }

    /// The settings for a connection that begins now.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current.config)
    }

    /// Counts a handshake that failed, by its reason.
    pub(super) fn count_failure(&self, reason: &str) {
        let failures = &self.metrics.tls_handshake_failures_total;
        failures.with_label_values(&[reason]).inc();
    }
}

impl Files {
    fn stamps(&self) -> Stamps {
        [
            stamp_of(&self.certificate),
            stamp_of(&self.key),
            self.client_ca.as_deref().and_then(stamp_of),
        ]
    }

    fn read(&self, metrics: &Metrics) -> Result<Arc<ServerConfig>> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates("--tls-cert", &self.certificate)?;
        let end = valid_until("--tls-cert", &self.certificate, &chain[0])?;
        let key = private_key(&self.key)?;
        let certified = self.certified(chain, key, &provider)?;
        let unusable = |problem| Error::Internal(format!("TLS: {problem}"));
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let (builder, client_ca_end) = match &self.client_ca {
            None => (builder.with_no_client_auth(), None),
            Some(file) => {
                let (roots, end) = authorities(file)?;
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
                let verifier = verifier.map_err(|problem| bad("--tls-client-ca", file, problem))?;
                (builder.with_client_cert_verifier(verifier), Some(end))
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        // The server speaks nothing else, and clients that want HTTP/2 must not take it for agreed.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        secret_file::warn_if_open(&self.key, "the key of the certificate");
        if end <= unix_seconds() {
            let file = self.certificate.display();
            tracing::warn!(%file, "the certificate is no longer valid; clients will refuse it");
        }
        let ends = &metrics.tls_certificate_expiry_timestamp_seconds;
        for (usage, end) in [("server", Some(end)), ("client_ca", client_ca_end)] {
            if let Some(end) = end {
                let end = i64::try_from(end).unwrap_or(i64::MAX);
                ends.with_label_values(&[usage]).set(end);
            }
        }
        Ok(Arc::new(config))
    }

    /// The certificate with its key, if they belong together.
    fn certified(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        provider: &CryptoProvider,
    ) -> Result<CertifiedKey> {
        let key = provider.key_provider.load_private_key(key);
        let key = key.map_err(|problem| bad("--tls-key", &self.key, problem))?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {
                Ok(certified)
            }
            Err(rustls::Error::InconsistentKeys(_)) => {
                let certificate = self.certificate.display();
                let problem = format!("is not the key of the certificate in {certificate}");
                Err(bad("--tls-key", &self.key, problem))
            }
            Err(problem) => Err(bad("--tls-cert", &self.certificate, problem)),
        }
    }
}

fn bad(flag: &str, file: &Path, problem: impl fmt::Display) -> Error {
    Error::Config(format!("{flag} {}: {problem}", file.display()))
}

/// The certificates of a file, which are at least one.
fn certificates(flag: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = secret_file::read(file)?;
    let all: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let all = all.map_err(|problem| bad(flag, file, problem))?;
    if all.is_empty() {
        return Err(bad(flag, file, "no certificate in PEM form is in it"));
    }
    Ok(all)
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>> {
    use rustls::pki_types::pem::Error as Pem;
    let bytes = secret_file::read(file)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|problem| match problem {
        Pem::NoItemsFound => {
            let problem = "no private key in PEM form is in it; one with a password cannot be used";
            bad("--tls-key", file, problem)
        }
        problem => bad("--tls-key", file, problem),
    })
}

/// The authorities of a file, and when the first of their certificates ends.
fn authorities(file: &Path) -> Result<(RootCertStore, u64)> {
    let flag = "--tls-client-ca";
    let (mut roots, mut first_end) = (RootCertStore::empty(), u64::MAX);
    for certificate in certificates(flag, file)? {
        first_end = first_end.min(valid_until(flag, file, &certificate)?);
        let added = roots.add(certificate);
        added.map_err(|problem| bad(flag, file, problem))?;
    }
    Ok((roots, first_end))
}

/// The end of a certificate's validity, in seconds since the Unix epoch.
fn valid_until(flag: &str, file: &Path, certificate: &CertificateDer<'_>) -> Result<u64> {
    let parsed = Certificate::from_der(certificate);
    let parsed =
        parsed.map_err(|problem| bad(flag, file, format!("bad certificate: {problem}")))?;
    let validity = parsed.tbs_certificate().validity();
    Ok(validity.not_after.to_unix_duration().as_secs())
}
