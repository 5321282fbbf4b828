//! The flags of `serve` for API keys, CORS and the path prefix.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::notify::{Manager, Message};
use crate::error::{Error, Result};
use crate::http::access::{Access, ApiKeys, FairBy};
use crate::http::app::App;
use crate::http::server::tls::Tls;

/// Access to the API: keys, origins of web pages, and the path prefix.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Security")]
pub struct AccessArgs {
    /// A file with one API key per line, with a name and limits behind it or without (docs/operations.md); lines that begin
    /// with # are comments. Requests need one of the keys, as a bearer token or in X-Api-Key. Without this flag every client that reaches the port is served. The file is read
    /// again within seconds of a change, and on SIGHUP.
    #[arg(long, env = "MICROGRANITE_API_KEY_FILE", value_name = "FILE")]
    api_key_file: Option<PathBuf>,

    /// Who gets equal shares of the server while it is busy: key, the clients with different API keys, or user, the end users
    /// that requests name in the field user, apart for each key.
    #[arg(
        long,
        env = "MICROGRANITE_FAIR_BY",
        value_name = "WHO",
        value_enum,
        default_value_t
    )]
    fair_by: FairBy,

    /// Let web pages of this origin (https://chat.example.org) call the API from a browser. Can be repeated or contain
    /// several, separated by commas; * allows all. Without API keys, * lets every page that a local user opens use the
    /// model.
    #[arg(long, env = "MICROGRANITE_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', value_parser = origin)]
    cors_origin: Vec<HeaderValue>,

    /// A prefix of every path (/granite), for proxies that do not remove it. Probes are also answered without it.
    #[arg(long, env = "MICROGRANITE_ROOT_PATH", value_name = "PATH", default_value = "", value_parser = root_path)]
    root_path: String,

    /// Do not serve the page at /, which shows the model, its memory and load, and lets people try it in a browser.
    /// The page asks for a key if the server has keys.
    #[arg(long, env = "MICROGRANITE_NO_PAGE", value_parser = clap::builder::BoolishValueParser::new())]
    no_page: bool,
}

/// How often to check the files for changes. Kubernetes takes a minute to update a mounted secret.
const LOOK_EVERY: Duration = Duration::from_secs(2);

impl AccessArgs {
    /// The access rules of the service.
    ///
    /// # Errors
    /// Those of [`ApiKeys::read`].
    pub fn access(&self, has_admin_port: bool) -> Result<Access> {
        let file = self.api_key_file.as_deref();
        Ok(Access {
            keys: file.map(ApiKeys::read).transpose()?,
            fair_by: self.fair_by,
            has_admin_port,
            root_path: self.root_path.clone(),
            without_page: self.no_page,
            cors_origins: self.cors_origin.clone(),
        })
    }
}

/// Listens for SIGHUP, which from now on does not end the process.
///
/// # Errors
/// [`Error::Internal`] if the system refuses the handler.
pub fn hangups() -> Result<Signal> {
    let hangups = signal(SignalKind::hangup());
    hangups.map_err(|problem| Error::Internal(format!("signals: {problem}")))
}

/// The files that are read again while the service runs.
pub struct KeptFiles {
    /// Has the keys.
    pub app: App,
    /// Has the certificate, if there is one.
    pub tls: Option<Arc<Tls>>,
    /// Is told when SIGHUP makes them be read.
    pub manager: Manager,
}

impl KeptFiles {
    /// Reads them again when they change, and at every item of `hangups`.
    pub async fn keep(self, mut hangups: Signal) {
        loop {
            let is_asked = tokio::select! {
                _ = hangups.recv() => true,
                () = sleep(LOOK_EVERY) => false,
            };
            // While the model is loading, the end of reloading would mean that the service is ready.
            let tells = is_asked && self.app.loaded_model().is_some();
            if tells {
                self.manager.tell(Message::Reloading);
            }
            let (app, tls) = (self.app.clone(), self.tls.clone());
            let look = move || {
                if let Some(keys) = &app.access().keys {
                    keys.reload(is_asked);
                }
                app.show_clients();
                if let Some(tls) = &tls {
                    tls.reload(is_asked);
                }
            };
            // On another thread: many keys take a moment, and this thread streams all responses.
            let _a_panic_is_in_the_log = spawn_blocking(look).await;
            if tells {
                self.manager.tell(Message::Reloaded);
            }
        }
    }
}

/// Parses an origin as browsers send it: a scheme, a host, optionally a port, and nothing else.
fn origin(text: &str) -> std::result::Result<HeaderValue, String> {
    let expected =
        "write an origin such as https://chat.example.org or http://localhost:3000, or *";
    let is_origin = || {
        let (scheme, host) = text.split_once("://")?;
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"/?#@,".contains(&byte);
        let is_good = !scheme.is_empty() && !host.is_empty() && host.bytes().all(is_plain);
        is_good.then_some(())
    };
    if text != "*" && is_origin().is_none() {
        return Err(expected.to_owned());
    }
    // Browsers send schemes and hosts in lower case.
    HeaderValue::try_from(text.to_ascii_lowercase()).map_err(|_| expected.to_owned())
}

/// Parses a path prefix; a trailing slash is ignored.
fn root_path(text: &str) -> std::result::Result<String, String> {
    let path = text.trim_end_matches('/');
    let is_segment = |segment: &str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        // Clients take dots out of a path before they send it, so such a prefix would never be asked for.
        !["", ".", ".."].contains(&segment) && segment.bytes().all(is_plain)
    };
    match path.strip_prefix('/') {
        _ if path.is_empty() => Ok(String::new()),
        Some(segments) if segments.split('/').all(is_segment) => Ok(path.to_owned()),
        _ => Err("write a path such as /granite, of letters, digits and -._~".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_have_a_scheme_and_a_host_and_nothing_behind_them() {
        for good in ["*", "https://chat.example.org", "http://localhost:3000"] {
            assert_eq!(origin(good).unwrap(), good);
        }
        assert_eq!(
            origin("HTTPS://Chat.example.org").unwrap(),
            "https://chat.example.org"
        );
        for bad in [
            "",
            "example.org",
            "https://",
            "https://a/",
            "https://a/b",
            "https://a b",
            "**",
        ] {
            assert!(origin(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn prefixes_are_plain_paths() {
        for (text, path) in [
            ("", ""),
            ("/", ""),
            ("/a", "/a"),
            ("/a/b-1/", "/a/b-1"),
            ("/v1.2/...", "/v1.2/..."),
        ] {
            assert_eq!(root_path(text).unwrap(), path);
        }
        for bad in [
            "a", "//a", "/a//b", "/{a}", "/a b", "/a?b", "/ä", "/../x", "/a/..", "/.", "/a/./b",
        ] {
            assert!(root_path(bad).is_err(), "{bad}");
        }
    }
}
