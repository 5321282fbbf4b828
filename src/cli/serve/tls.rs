//! The flags of `serve` for TLS.

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::Result;
use crate::http::server::tls::{Files, Tls};
use crate::telemetry::Metrics;

/// TLS on the API's port.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "TLS")]
pub struct TlsArgs {
    /// A PEM file with the server's certificate, followed by those that lead to a root. With it, --listen speaks HTTPS
    /// (TLS 1.2 and 1.3). It is read again within seconds of a change, and on SIGHUP; if the new one cannot be used, the
    /// old one stays.
    #[arg(
        long,
        env = "MICROGRANITE_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    tls_cert: Option<PathBuf>,

    /// A PEM file with the private key of the certificate, without a password.
    #[arg(
        long,
        env = "MICROGRANITE_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    tls_key: Option<PathBuf>,

    /// A PEM file with the certificates of authorities. With it, a client must present a certificate that one of them has
    /// issued (mutual TLS).
    #[arg(
        long,
        env = "MICROGRANITE_TLS_CLIENT_CA",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    tls_client_ca: Option<PathBuf>,

    /// Speak HTTPS on --admin-listen too. Without this flag it speaks plain HTTP, which probes and Prometheus expect.
    #[arg(long, env = "MICROGRANITE_ADMIN_TLS", requires = "tls_cert", value_parser = clap::builder::BoolishValueParser::new())]
    admin_tls: bool,
}

impl TlsArgs {
    /// Whether connections to the admin port use TLS too.
    pub const fn is_on_for_admin(&self) -> bool {
        self.admin_tls
    }

    /// Reads the files.
    ///
    /// # Errors
    /// Those of [`Tls::read`].
    pub fn read(&self, metrics: &Arc<Metrics>) -> Result<Option<Arc<Tls>>> {
        let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) else {
            return Ok(None);
        };
        let files = Files {
            certificate: certificate.clone(),
            key: key.clone(),
            client_ca: self.tls_client_ca.clone(),
        };
        let tls = Tls::read(files, Arc::clone(metrics))?;
        Ok(Some(Arc::new(tls)))
    }
}
