//! Tests with standard error and standard output that are closed, full, or not read.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::blocking::Client;
use serde_json::json;

use crate::process::{microgranite, tiny};

/// Much longer than any of these tests takes, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Starts a server with this standard error, and returns it with its URL.
fn serve(stderr: Stdio) -> (Child, String) {
    let model = tiny();
    let mut command = microgranite(&["serve", "--model", &model, "--listen", "127.0.0.1:0"]);
    command.args(["--log", "debug"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.map(Result::unwrap).next().expect("it starts");
    let url = ready.rsplit_once(' ').unwrap().1.to_owned();
    (child, url)
}

/// Asserts that requests are answered completely, that probes succeed, and that SIGTERM ends the process with exit code
/// 0. Returns the number of lost log lines.
fn serves_and_ends(mut child: Child, url: &str) -> u64 {
    let client = Client::builder().timeout(LIMIT).build().unwrap();
    let body = json!({"prompt": [3, 4], "max_tokens": 2, "stream": true});
    for _ in 0..300 {
        let answer = client.post(format!("{url}/v1/completions")).json(&body);
        let text = answer.send().unwrap().text().unwrap();
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    }
    let get = |path: &str| client.get(format!("{url}{path}")).send().unwrap();
    assert_eq!(get("/readyz").status(), 200);
    let metrics = get("/metrics").text().unwrap();
    let value = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    assert_eq!(value("microgranite_requests_total{outcome=\"ok\"}"), 300);
    assert_eq!(ended(&mut child, "-TERM"), Some(0));
    value("microgranite_log_lines_dropped_total")
}

/// Sends a signal and waits for the exit code.
fn ended(child: &mut Child, signal: &str) -> Option<i32> {
    let id = child.id().to_string();
    let sent = Command::new("kill").args([signal, &id]).status().unwrap();
    assert!(sent.success());
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        assert!(start.elapsed() < LIMIT, "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn full() -> Stdio {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    full.into()
}

#[test]
fn a_pipe_without_a_reader_loses_lines_and_nothing_else() {
    let (reader, writer) = std::io::pipe().unwrap();
    let (child, url) = serve(writer.into());
    drop(reader);
    assert!(serves_and_ends(child, &url) > 300);
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_loses_lines_and_nothing_else() {
    let (child, url) = serve(full());
    assert!(serves_and_ends(child, &url) > 300);
}

#[test]
fn a_pipe_that_nobody_reads_holds_nobody_up() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let stderr = writer.try_clone().unwrap();
    // Fills the pipe from the start; the write ends when the reader is dropped.
    let filling = std::thread::spawn(move || writer.write_all(&[b'\n'; 8 << 20]));
    let (child, url) = serve(stderr.into());
    serves_and_ends(child, &url);
    drop(reader);
    assert!(filling.join().unwrap().is_err());
}

#[test]
#[cfg(target_os = "linux")]
fn exit_codes_are_right_whatever_becomes_of_the_message() {
    let model = tiny();
    for (arguments, code) in [
        (vec!["nonsense"], 64),
        (vec!["serve", "--threads", "0"], 64),
        (vec!["serve", "--model", "/nowhere/at/all"], 66),
        (vec!["inspect", "/nowhere/at/all"], 66),
        (vec!["inspect", &model], 74),
        (vec!["--version"], 0),
    ] {
        let mut command = microgranite(&arguments);
        let status = command.stdout(full()).stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
    // The process ends even if its message cannot be written.
    let (reader, mut writer) = std::io::pipe().unwrap();
    let stderr = writer.try_clone().unwrap();
    let filling = std::thread::spawn(move || writer.write_all(&[b'\n'; 8 << 20]));
    let status = microgranite(&["nonsense"]).stderr(stderr).status().unwrap();
    assert_eq!(status.code(), Some(64));
    drop(reader);
    assert!(filling.join().unwrap().is_err());
}

#[test]
fn lines_that_can_be_written_are_all_written() {
    let (mut child, _url) = serve(Stdio::piped());
    let mut stderr = child.stderr.take().unwrap();
    assert_eq!(ended(&mut child, "-INT"), Some(0));
    let mut log = String::new();
    stderr.read_to_string(&mut log).unwrap();
    assert!(log.contains("the engine has drained"), "{log}");
}
