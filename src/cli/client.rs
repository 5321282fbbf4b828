//! A client of a running server, for the commands that talk to one.

use std::io::{ErrorKind, Read};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::{StatusCode, Uri};
use ureq::{Agent, Body};

use crate::error::{Error, Result};

/// Where `serve` listens by default.
pub const DEFAULT_URL: &str = "http://127.0.0.1:8080";
/// A connection is made within seconds, or not at all.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// For answers that need no computation.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// More than any answer that is read whole: a model's card takes two thousand bytes, an error less.
const MOST_BYTES: u64 = 1 << 20;

/// The key for a server that requires one.
#[derive(Debug, Clone, clap::Args)]
pub struct KeyArg {
    /// The key for a server that has API keys. Other users of this machine can read flags, but not variables.
    #[arg(
        long,
        env = "MICROGRANITE_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    api_key: Option<String>,
}

/// A running server.
pub struct Client {
    agent: Agent,
    /// The address without a slash at its end, and without `/v1`.
    base: String,
    key: Option<String>,
}

/// Reads the address of a server: `http://HOST:PORT`, `HOST:PORT` or `:PORT`, with or without `/v1`.
///
/// # Errors
/// A message for the user, which says what to write.
pub fn url(text: &str) -> std::result::Result<String, String> {
    let text = match text {
        text if text.starts_with(':') => format!("http://127.0.0.1{text}"),
        text if !text.contains("://") => format!("http://{text}"),
        text => text.to_owned(),
    };
    let text = text.trim_end_matches('/');
    let base = text.strip_suffix("/v1").unwrap_or(text);
    let uri: Option<Uri> = base.parse().ok();
    let scheme = uri.as_ref().and_then(Uri::scheme_str);
    let has_host = uri
        .as_ref()
        .and_then(Uri::host)
        .is_some_and(|h| !h.is_empty());
    match scheme {
        Some("http" | "https") if has_host => Ok(base.to_owned()),
        _ => Err(format!(
            "write the address of a server, such as {DEFAULT_URL}"
        )),
    }
}

impl Client {
    /// A client of the server at `base`, as [`url`] reads it.
    pub fn new(base: &str, key: KeyArg) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_WITHIN))
            .build();
        Self {
            agent: config.into(),
            base: base.to_owned(),
            key: key.api_key,
        }
    }

    /// The server's address.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// What `GET` on `path` answers, as JSON.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where no server answers, or another one; [`Error::Config`] where it wants a key.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let request = self.agent.get(format!("{}{path}", self.base));
        let request = request.config().timeout_global(Some(ANSWER_WITHIN)).build();
        let request = match self.bearer() {
            Some(bearer) => request.header("authorization", bearer),
            None => request,
        };
        let answer = request.call().map_err(|problem| self.no_answer(&problem))?;
        let (head, body) = answer.into_parts();
        if let Some(error) = self.refused(head.status) {
            return Err(error);
        }
        let text = read(body).map_err(|problem| self.no_answer(&problem.into()))?;
        if head.status != StatusCode::OK {
            return Err(match api_message(&text) {
                Some(message) => {
                    Error::Unavailable(format!("the server at {}: {message}", self.base))
                }
                None => self.other_service(path, head.status),
            });
        }
        serde_json::from_slice(&text).map_err(|_| self.other_service(path, head.status))
    }

    /// Sends `body` to `path`. The answer is read as it comes, for as long as it takes.
    ///
    /// # Errors
    /// As [`Self::get`]; answers of other statuses are the caller's.
    pub fn post(&self, path: &str, body: &Value) -> Result<(u16, impl Read + Send + use<>)> {
        let request = self.agent.post(format!("{}{path}", self.base));
        let request = request.header("content-type", "application/json");
        let request = match self.bearer() {
            Some(bearer) => request.header("authorization", bearer),
            None => request,
        };
        let sent = request.send(body.to_string());
        let answer = sent.map_err(|problem| self.no_answer(&problem))?;
        let (head, body) = answer.into_parts();
        match self.refused(head.status) {
            Some(error) => Err(error),
            None => Ok((head.status.as_u16(), body.into_reader())),
        }
    }

    fn bearer(&self) -> Option<String> {
        self.key.as_ref().map(|key| format!("Bearer {key}"))
    }

    /// The error for a request that got no answer.
    fn no_answer(&self, problem: &ureq::Error) -> Error {
        let base = &self.base;
        let text = match problem {
            ureq::Error::Io(problem) if problem.kind() == ErrorKind::ConnectionRefused => {
                format!(
                    "no server answers at {base}: start one with `microgranite serve`, or give the address of another"
                )
            }
            ureq::Error::Timeout(_) => format!("{base} does not answer in time"),
            ureq::Error::HostNotFound => format!("{base}: no address of this host is known"),
            problem => format!("{base}: {problem}"),
        };
        Error::Unavailable(text)
    }

    /// The error for a server that wants a key, or another one.
    fn refused(&self, status: StatusCode) -> Option<Error> {
        let problem = match (status, &self.key) {
            (StatusCode::UNAUTHORIZED, None) => {
                "the server wants an API key: put it into the variable MICROGRANITE_API_KEY"
            }
            (StatusCode::UNAUTHORIZED, Some(_)) => "the server does not accept this API key",
            _ => return None,
        };
        Some(Error::Config(format!("{}: {problem}", self.base)))
    }

    fn other_service(&self, path: &str, status: StatusCode) -> Error {
        Error::Unavailable(format!(
            "{}: something else answers there: GET {path} gives {}, not what microgranite answers",
            self.base,
            status.as_u16()
        ))
    }
}

fn read(body: Body) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    body.into_reader()
        .take(MOST_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The message of an error as the API writes it.
pub fn api_message(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    Some(body["error"]["message"].as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::url;

    #[test]
    fn addresses_are_taken_as_people_write_them() {
        for (text, base) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://127.0.0.1:8080/v1/", "http://127.0.0.1:8080"),
            ("localhost:9000", "http://localhost:9000"),
            (":9000", "http://127.0.0.1:9000"),
            (
                "https://models.example.org/granite",
                "https://models.example.org/granite",
            ),
            ("[::1]:8080", "http://[::1]:8080"),
        ] {
            assert_eq!(url(text).as_deref(), Ok(base), "{text}");
        }
        for bad in ["", "http://", "ftp://a", "a b", "http:///v1"] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }
}
