//! The message on standard output when the service is ready.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};

use crate::http::server::Address;

/// Writes `text` to standard output, on a separate thread, since the reader may block.
pub fn show(text: String) {
    let write = move || std::io::stdout().write_all(text.as_bytes());
    // If this fails, the log has the same information.
    let _no_thread = std::thread::Builder::new()
        .name("stdout".into())
        .spawn(write);
}

/// How clients reach the service.
pub struct Ready<'a> {
    /// Where it listens.
    pub address: &'a Address,
    /// Whether it speaks HTTPS.
    pub is_tls: bool,
    /// Whether requests need a key.
    pub needs_key: bool,
}

impl Ready<'_> {
    /// The text of the message: the address, the model, and a command that works.
    pub fn text(&self, name: &str, facts: &str) -> String {
        // The certificate is for the server's name, which is not its address.
        let (scheme, insecure) = match self.is_tls {
            true => ("https", " --insecure"),
            false => ("http", ""),
        };
        let (place, host, socket) = match self.address {
            Address::Tcp(address) => {
                let mut reachable = *address;
                if address.ip().is_unspecified() {
                    reachable.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
                }
                (
                    format!("{scheme}://{address}"),
                    reachable.to_string(),
                    String::new(),
                )
            }
            Address::Unix(path) => {
                let path = path.display().to_string().replace('\'', r"'\''");
                let socket = format!(" --unix-socket '{path}'");
                (self.address.to_string(), "localhost".to_owned(), socket)
            }
        };
        let key = if self.needs_key {
            " -H \"authorization: Bearer $API_KEY\""
        } else {
            ""
        };
        // The name of a folder can contain any character, so it is quoted for JSON and for the shell.
        let body = serde_json::json!({
            "model": name, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0,
        });
        let body = body.to_string().replace('\'', r"'\''");
        format!(
            "{name} is ready on {place}\n{facts}\n\n\
             curl {scheme}://{host}/v1/completions{insecure}{socket}{key} -H 'content-type: application/json' -d '{body}'\n"
        )
    }
}
