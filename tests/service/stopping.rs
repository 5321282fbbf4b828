//! Tests of signals: which of them end the binary, and that it ends even if one of its threads hangs.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::blocking::Client;
use serde_json::json;

use crate::process::{Running, microgranite, tiny};

const LIMIT: Duration = Duration::from_secs(60);

fn serve() -> (Running, String) {
    let model = tiny();
    let mut command = microgranite(&["serve", &model, "--listen", "localhost:0"]);
    command.args(["--drain-timeout", "1", "--log-format", "json"]);
    command.args(["--threads", "1000"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Running(child.spawn().unwrap());
    let lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
    let ready = lines.map(Result::unwrap).next().expect("it starts");
    let url = ready.rsplit_once(' ').unwrap().1.to_owned();
    (process, url)
}

impl Running {
    fn signal(&self, name: &str) {
        let id = self.0.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status();
        assert!(sent.unwrap().success(), "{name}");
    }

    /// Waits for the end of the process and returns its exit code and its log.
    fn ended(mut self) -> (Option<i32>, String) {
        let start = Instant::now();
        let code = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break status.code();
            }
            assert!(start.elapsed() < LIMIT, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut log = String::new();
        let mut stderr = self.0.stderr.take().unwrap();
        stderr.read_to_string(&mut log).unwrap();
        (code, log)
    }
}

#[test]
fn no_signal_ends_the_service_without_draining() {
    let (process, url) = serve();
    let stray = [
        "HUP", "USR1", "USR2", "ALRM", "VTALRM", "PROF", "PIPE", "XFSZ", "RTMIN",
    ];
    for name in stray {
        process.signal(name);
    }
    let body = json!({"prompt": [3, 4], "max_tokens": 2});
    let answer = Client::new()
        .post(format!("{url}/v1/completions"))
        .json(&body)
        .send();
    assert_eq!(answer.unwrap().status(), 200);
    process.signal("QUIT");
    let (code, log) = process.ended();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("the engine has drained"), "{log}");
    for name in stray
        .iter()
        .filter(|name| !["PIPE", "RTMIN"].contains(name))
    {
        assert!(
            log.contains(&format!("\"signal\":\"SIG{name}\"")),
            "{name}: {log}"
        );
    }
}

#[test]
fn positional_models_names_of_hosts_and_too_many_threads_are_taken() {
    let (process, url) = serve();
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    process.signal("TERM");
    let (code, log) = process.ended();
    assert_eq!(code, Some(0));
    assert!(log.contains("--threads 1000: there are"), "{log}");
}

/// A chat template that is never delivered stands for everything that can block, such as a disk that has failed or a
/// stuck thread.
#[test]
fn a_process_that_hangs_ends_all_the_same_with_a_code_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("template");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let mut command = microgranite(&[
        "serve",
        &tiny(),
        "--listen",
        "127.0.0.1:0",
        "--chat-template",
    ]);
    let child = command.arg(&pipe).stderr(Stdio::piped()).spawn();
    let process = Running(child.unwrap());
    // The process handles signals only after it has read its flags.
    std::thread::sleep(Duration::from_secs(1));
    process.signal("TERM");
    let (code, log) = process.ended();
    assert_eq!(code, Some(75), "{log}");
    assert!(log.contains("something hangs"), "{log}");
}
