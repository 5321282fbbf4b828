//! Tests of the binary: what it prints, how it ends, and with which exit code.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};

use microgranite::build;
use microgranite::config::ByteSize;
use serde_json::Value;

use crate::harness::fixture;

pub fn microgranite(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_microgranite"));
    command.args(arguments);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MICROGRANITE_")) {
        command.env_remove(name);
    }
    command
}

fn serve(arguments: &[&str]) -> Command {
    let mut command = microgranite(&["serve"]);
    command.args(arguments);
    command
}

pub fn tiny() -> String {
    fixture("granite-3-tiny").display().to_string()
}

/// Kills its process when it is dropped.
pub struct Running(pub Child);

/// Serves `model` and waits until it is ready. Returns the process and its URL.
pub fn running(model: &str) -> (Running, String) {
    running_with(model, &[])
}

/// The same, with further flags.
pub fn running_with(model: &str, flags: &[&str]) -> (Running, String) {
    let mut command = serve(&["--model", model]);
    command.args(["--listen", "127.0.0.1:0", "--log", "error"]);
    command.args(flags);
    let mut process = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
    let ready = lines.map(Result::unwrap).next().unwrap();
    let (_, url) = ready.rsplit_once(' ').unwrap();
    (process, url.to_owned())
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
    }
}

#[test]
fn serve_prints_a_request_that_works_and_sigterm_ends_it_well() {
    let model = tiny();
    let mut command = serve(&[
        "--model",
        &model,
        "--listen",
        "127.0.0.1:0",
        "--log-format",
        "json",
    ]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Running(command.spawn().unwrap());
    let lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
    let lines: Vec<String> = lines.take(4).map(Result::unwrap).collect();
    assert!(
        lines[0].starts_with("granite-3-tiny is ready on http://127.0.0.1:"),
        "{lines:?}"
    );
    assert!(lines[1].contains("int8"), "{lines:?}");

    // The printed command, as a shell would run it.
    let words: Vec<&str> = lines[3].split(' ').collect();
    assert_eq!(words[0], "curl");
    let (_, body) = lines[3].split_once("-d '").unwrap();
    let response = reqwest::blocking::Client::new()
        .post(words[1])
        .header("content-type", "application/json")
        .body(body.trim_end_matches('\'').to_owned())
        .send()
        .unwrap();
    assert_eq!(response.status(), 200);
    let answer: Value = serde_json::from_str(&response.text().unwrap()).unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 8);
    let fingerprint = answer["system_fingerprint"].as_str().unwrap();
    let named = format!("microgranite-{}-{}-", build::VERSION, build::ID);
    assert!(fingerprint.starts_with(&named), "{fingerprint}");

    let id = process.0.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &id])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(process.0.wait().unwrap().code(), Some(0));
    let mut log = String::new();
    process
        .0
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut log)
        .unwrap();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("every log line is JSON"))
        .collect();
    let request = lines
        .iter()
        .find(|line| line["message"] == "request")
        .unwrap();
    assert_eq!(request["route"], "/v1/completions");
    assert_eq!(request["outcome"], "ok");
    assert_eq!(request["completion_tokens"], 8);
    assert!(
        !log.contains("capital of France"),
        "prompts are never logged"
    );
}

#[test]
fn a_hybrid_says_what_its_states_take_and_refuses_what_does_not_fit() {
    let hybrid = fixture("granite-4-hybrid-tiny").display().to_string();
    let mut command = serve(&[
        "--model",
        &hybrid,
        "--listen",
        "127.0.0.1:0",
        "--max-batch",
        "8",
    ]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = Running(command.spawn().unwrap());
    let lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
    let lines: Vec<String> = lines.take(2).map(Result::unwrap).collect();
    // Four Mamba-2 layers; for each of 16 slots and 8 snapshots 3 rows of 512 convolved channels, and 256 channels of 128
    // values.
    let states: u64 = (16 + 8) * 4 * 4 * (3 * 512 + 256 * 128);
    let part = format!(
        " of KV cache, {} for 16 states and 8 snapshots, ",
        ByteSize(states)
    );
    assert!(lines[1].contains(&part), "{part:?} is not in {lines:?}");
    let url = lines[0].rsplit_once(' ').unwrap().1;
    let get = |path: &str| reqwest::blocking::get(format!("{url}{path}")).unwrap();
    let models: Value = get("/v1/models").json().unwrap();
    let facts = &models["data"][0]["quantization"];
    assert_eq!(facts["recurrent_state_bytes"], states);
    let line = format!("microgranite_recurrent_state_bytes{{state=\"reserved\"}} {states}\n");
    assert!(get("/metrics").text().unwrap().contains(&line));
    drop(process);

    let (code, text) = run(serve(&[
        "--log",
        "error",
        "--model",
        &hybrid,
        "--kv-cache",
        "9999GiB",
    ]));
    assert_eq!((code, text.lines().count()), (78, 1), "{text}");
    let part = format!("{} for 32 states and ", ByteSize(2 * states));
    for part in [&*part, "smaller --max-batch, --state-cache, --kv-cache"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

#[test]
fn the_version_names_the_build() {
    let shown = microgranite(&["--version"]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let (version, id) = (build::VERSION, build::ID);
    assert_eq!(shown, format!("microgranite {version} (build {id})\n"));
}

fn run(mut command: Command) -> (i32, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    assert!(stdout.is_empty(), "{}", String::from_utf8_lossy(&stdout));
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn settings_that_cannot_work_end_with_one_line_and_a_documented_code() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let model = tiny();
    let here = ["--listen", "127.0.0.1:0", "--log", "error", "--model"];
    for (arguments, code, words) in [
        (
            vec![&*model, "--listen", &taken][..].to_vec(),
            78,
            "--listen",
        ),
        (
            vec![&*model, "--admin-listen", &taken],
            78,
            "--admin-listen",
        ),
        (
            vec![&*model, "--listen", &taken, "--admin-listen", &taken],
            78,
            "give each its own",
        ),
        (vec![&*model, "--kv-cache", "9999GiB"], 78, "limit"),
        (vec![&*model, "--kv-cache", "10"], 78, "too small"),
        (vec![&*model, "--context", "513"], 78, "512"),
        (vec!["/nowhere/at/all"], 66, "/nowhere/at/all"),
        (
            vec![&*model, "--api-key-file", "/nowhere/keys"],
            66,
            "/nowhere/keys",
        ),
    ] {
        let mut command = serve(&here);
        // The parser would refuse a second --listen, so the first one is removed.
        if arguments.contains(&"--listen") {
            command = serve(&["--log", "error", "--model"]);
        }
        command.args(&arguments);
        let (found, text) = run(command);
        assert_eq!(found, code, "{arguments:?}: {text}");
        assert!(
            text.starts_with("error: ") && text.contains(words),
            "{arguments:?}: {text}"
        );
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[test]
fn bad_usage_is_64_whether_typed_or_in_the_environment() {
    for arguments in [
        &["nonsense"][..],
        &["serve", "--nonsense"],
        &["serve", "--threads", "0"],
        &["serve", "--threads", "many"],
        &["serve", "--max-batch", "0"],
        &["serve", "--listen", "here"],
        &["serve", "--kv-cache", "1.5G"],
        &["serve", "--drain-timeout", "-1"],
        &["serve", "--log-format", "xml"],
        &["serve", "--log", "=,="],
        &["serve", "--model", "hf:nonsense"],
        &["serve", "--cors-origin", "example.org"],
        &["serve", "--root-path", "no-slash"],
        &["serve", "--served-model-name", "a,,b"],
        &["serve", "--max-request-memory", "1MiB"],
    ] {
        let (code, text) = run(microgranite(arguments));
        assert_eq!(code, 64, "{arguments:?}: {text}");
        assert!(text.starts_with("error: "), "{arguments:?}: {text}");
    }
    let mut command = serve(&[]);
    command.env("MICROGRANITE_MAX_QUEUE", "-3");
    assert_eq!(run(command).0, 64);
}

#[test]
fn every_flag_can_be_set_by_a_variable() {
    let help = microgranite(&["serve", "--help"]).output().unwrap();
    assert!(help.status.success());
    let help = String::from_utf8(help.stdout).unwrap();
    let flags: Vec<&str> = help
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("--"))
        .map(|line| line.split([' ', '=']).next().unwrap())
        .collect();
    assert!(flags.len() >= 12, "{flags:?}");
    for flag in flags {
        let variable = format!("MICROGRANITE_{}", flag.to_uppercase().replace('-', "_"));
        assert!(help.contains(&variable), "{flag} has no variable");
    }
}
