//! What standard output says when the first request can come.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Puts `text` on standard output, on a thread that may take its time: nobody may be reading.
pub fn show(text: String) {
    let write = move || std::io::stdout().write_all(text.as_bytes());
    // What is lost then is in the log too.
    let _no_thread = std::thread::Builder::new()
        .name("stdout".into())
        .spawn(write);
}

/// What standard output says when the first request can come: where, what, and a command that works.
pub fn ready_text(address: SocketAddr, name: &str, facts: &str, needs_key: bool) -> String {
    let mut reachable = address;
    if address.ip().is_unspecified() {
        reachable.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let key = if needs_key {
        " -H \"authorization: Bearer $API_KEY\""
    } else {
        ""
    };
    // A name from a folder can hold anything; JSON and the shell both have their quotes.
    let body = serde_json::json!({
        "model": name, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0,
    });
    let body = body.to_string().replace('\'', r"'\''");
    format!(
        "{name} is ready on http://{address}\n{facts}\n\n\
         curl http://{reachable}/v1/completions{key} -H 'content-type: application/json' -d '{body}'\n"
    )
}
