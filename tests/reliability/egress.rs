//! R28: the server opens no connection, and no file that a request names.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::arguments::Context;
use crate::client::{self, COMPLETIONS};
use crate::findings::{Findings, Problem};
use crate::machine::find_program;
use crate::models;
use crate::server::Launch;

pub async fn egress(context: Context) -> Result<Findings, Problem> {
    if find_program("strace").is_none() {
        return Ok(Findings::skipped("needs strace"));
    }
    let model = models::packed(&context, 512)?;
    let folder = tempfile::tempdir()?;
    let trace = folder.path().join("trace");
    let path = trace.display().to_string();
    // Threads follow, children too: the grammars' compiler is one.
    let strace = [
        "strace",
        "-f",
        "-qq",
        "-e",
        "trace=connect,openat,open,sendto,socket",
        "-o",
        &path,
    ];
    let mut server = Launch::new(&context, &model.path, &[])
        .under(&strace)
        .start()
        .await?;
    let names = names();
    let mut not_found = 0;
    for name in &names {
        let body = json!({"model": name, "prompt": "a", "max_tokens": 1});
        not_found += usize::from(
            client::post(server.address, COMPLETIONS, &body)
                .await?
                .status
                == 404,
        );
        let asked = client::raw(
            server.address,
            &client::request(
                "GET",
                &format!("/v1/models/{}", name.replace([' ', '\0', '\n'], "%20")),
                "",
                b"",
            ),
            Duration::from_secs(5),
        )
        .await?;
        let is_refused = ["HTTP/1.1 404", "HTTP/1.1 400"]
            .iter()
            .any(|status| asked.starts_with(status.as_bytes()));
        not_found += usize::from(is_refused);
    }
    for body in [
        json!({"prompt": "a", "max_tokens": 4}),
        json!({"prompt": "a", "max_tokens": 4, "response_format": {"type": "json_object"}}),
        json!({"prompt": "a", "max_tokens": 2, "structured_outputs": {"json": {"$ref": "http://localhost/x.json"}}}),
        json!({"prompt": "a", "max_tokens": 2, "structured_outputs": {"json": {"$ref": "file:///etc/passwd"}}}),
    ] {
        client::post(server.address, COMPLETIONS, &body).await?;
    }
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://localhost/x.png"}}]}]});
    client::post(server.address, "/v1/chat/completions", &image).await?;
    client::get(server.admin, "/metrics").await?;
    // The server is the tracer's child, and the tracer ends with it.
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", server.id))?;
    let child = children
        .split_whitespace()
        .next()
        .and_then(|id| id.parse().ok());
    let child = child.and_then(Pid::from_raw).ok_or("strace has a child")?;
    kill_process(child, Signal::TERM)?;
    server.ended().await?;
    let text = std::fs::read_to_string(&trace)?;
    // What is opened before the ports are bound belongs to the start.
    let lines: Vec<&str> = text.lines().collect();
    let ready = lines
        .iter()
        .rposition(|line| {
            line.contains(&model.path.display().to_string()) && line.contains("openat")
        })
        .unwrap_or(0);
    // The two ports are open by then; what else needs a socket is a connection or a datagram.
    let sockets = lines[ready..]
        .iter()
        .filter(|line| line.contains("socket(AF_INET"))
        .count();
    let connects: Vec<&&str> = lines.iter().filter(|line| is_network(line)).collect();
    let allowed = [
        "/proc/",
        "/sys/",
        "/dev/null",
        // A static program asks the devices for randomness, and reads this file when it is told how to look names up.
        "/dev/random",
        "/dev/urandom",
        "/etc/nsswitch.conf",
        "/etc/ld.so",
        "/lib",
        "/usr/lib",
        "/etc/localtime",
    ];
    let own = [
        model.path.display().to_string(),
        context.server.display().to_string(),
    ];
    let opened: Vec<&&str> = lines[ready..]
        .iter()
        .filter(|line| line.contains("open") && line.contains('"'))
        .filter(|line| {
            let file = line.split('"').nth(1).unwrap_or_default();
            !allowed.iter().any(|start| file.starts_with(start))
                && !own.iter().any(|start| file.starts_with(&**start))
        })
        .collect();
    let mut found = Findings::default();
    found.always(
        "names that are paths are not found",
        not_found,
        2 * names.len(),
    );
    found.at_least("system calls seen", lines.len() as f64, "", 10.0);
    found.never("connections opened", connects.len());
    found.at_most("sockets made but the two ports", sockets as f64, "", 2.0);
    found.never("files opened elsewhere", opened.len());
    for line in connects.iter().chain(&opened).take(4) {
        found.note((**line).to_owned());
    }
    Ok(found)
}

/// A connection to anything but a local socket of this process's own making.
fn is_network(line: &str) -> bool {
    line.contains(" connect(") && !line.contains("AF_UNIX")
}

fn names() -> Vec<String> {
    let mut names = Vec::new();
    for depth in 1..=6 {
        let up = "../".repeat(depth);
        for file in ["etc/passwd", "proc/self/environ", "root/.ssh/id_rsa"] {
            names.push(format!("{up}{file}"));
            names.push(format!("tiny/{up}{file}"));
        }
    }
    names.extend(
        [
            "/etc/passwd",
            "//etc/passwd",
            "file:///etc/passwd",
            "..",
            ".",
            "tiny/../tiny",
            "tiny/config.json",
            "tiny%00",
            "..%2f..%2fetc%2fpasswd",
            "..\\..\\etc\\passwd",
            "~/.ssh/id_rsa",
            "hf:ibm-granite/granite-3.3-2b-instruct",
            "http://localhost/model",
            "\\\\host\\share",
            "$(cat /etc/passwd)",
        ]
        .map(str::to_owned),
    );
    names
}
