//! Tests of damaged weights: the damage is found and logged, and the model is no longer served.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use microgranite::sources::packed::WEIGHTS;
use reqwest::blocking::{Client, Response};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Running, microgranite, tiny};

const LIMIT: Duration = Duration::from_secs(60);
const TENSOR: &str = "model.embed_tokens.codes";

/// Packs the fixture.
fn packed() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut command = microgranite(&["quantize", &tiny(), "--rounding", "nearest", "--force"]);
    command.arg("--output").arg(folder.path().join("packed"));
    assert!(command.output().unwrap().status.success());
    folder
}

/// Flips a bit in every eighth byte of the embedding's codes, in place.
fn damage(folder: &Path) {
    let path = folder.join("packed").join(WEIGHTS);
    let mut bytes = Vec::new();
    File::open(&path).unwrap().read_to_end(&mut bytes).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let (start, end) = metadata.info(TENSOR).unwrap().data_offsets;
    let start = 8 + header + start;
    let codes = &mut bytes[start..8 + header + end];
    codes.iter_mut().step_by(8).for_each(|code| *code ^= 64);
    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(start as u64)).unwrap();
    file.write_all(codes).unwrap();
}

struct Service {
    process: Running,
    url: String,
    client: Client,
}

impl Service {
    fn start(folder: &Path, verify: &str) -> Self {
        let model = folder.join("packed");
        let mut command = microgranite(&["serve", "--listen", "127.0.0.1:0", "--verify", verify]);
        command
            .arg(model)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = Running(command.spawn().unwrap());
        let lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
        let ready = lines.map(Result::unwrap).next().expect("it starts");
        let url = ready.rsplit_once(' ').unwrap().1.to_owned();
        let client = Client::builder().timeout(LIMIT).build().unwrap();
        Self {
            process,
            url,
            client,
        }
    }

    fn get(&self, path: &str) -> Response {
        self.client
            .get(format!("{}{path}", self.url))
            .send()
            .unwrap()
    }

    fn complete(&self) -> reqwest::Result<Response> {
        let body = json!({"prompt": [3, 4], "max_tokens": 2});
        let url = format!("{}/v1/completions", self.url);
        self.client.post(url).json(&body).send()
    }

    /// Waits until the metric has this state.
    fn weights_are(&self, state: &str) {
        let line = format!("microgranite_weights_state{{state=\"{state}\"}} 1\n");
        let start = Instant::now();
        while !self.get("/metrics").text().unwrap().contains(&line) {
            assert!(start.elapsed() < LIMIT, "the weights are not {state}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asserts that requests and readiness fail, and that the log gives the reason.
    fn ends_out_of_service(mut self) {
        self.weights_are("damaged");
        assert_eq!(self.get("/readyz").status(), 503);
        let refused = self.complete().unwrap();
        assert_eq!(refused.status(), 503);
        let body: Value = refused.json().unwrap();
        assert_eq!(body["error"]["code"], "weights_damaged");
        // The line is written beside the serving, so it can come after the state has changed: it is waited for, not looked for.
        let log = BufReader::new(self.process.0.stderr.take().unwrap()).lines();
        let line = log
            .map(Result::unwrap)
            .find(|line| line.contains("ERROR"))
            .expect("a line");
        assert!(line.contains(TENSOR) && line.contains(WEIGHTS), "{line}");
    }
}

#[test]
fn damage_from_before_the_start_is_found_beside_the_serving() {
    let folder = packed();
    damage(folder.path());
    Service::start(folder.path(), "background").ends_out_of_service();
    // With verification off, the damaged weights are served.
    let trusting = Service::start(folder.path(), "off");
    assert_eq!(trusting.complete().unwrap().status(), 200);
}

#[test]
fn damage_is_refused_before_the_service_is_ready_if_asked() {
    let folder = packed();
    let service = Service::start(folder.path(), "start");
    service.weights_are("verified");
    drop(service);
    damage(folder.path());
    let model = folder.path().join("packed");
    let mut command = microgranite(&["serve", "--listen", "127.0.0.1:0", "--verify", "start"]);
    let output = command
        .args(["--log", "error"])
        .arg(model)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(65), "{text}");
    assert!(text.contains(TENSOR) && text.lines().count() == 1, "{text}");
}

#[test]
fn a_file_that_is_written_to_while_it_is_served_is_compared_again() {
    let folder = packed();
    let service = Service::start(folder.path(), "background");
    service.weights_are("verified");
    assert_eq!(service.complete().unwrap().status(), 200);
    damage(folder.path());
    service.ends_out_of_service();
}

#[test]
fn a_file_that_becomes_shorter_ends_in_a_message_or_a_refusal_and_never_in_a_signal() {
    let folder = packed();
    let mut service = Service::start(folder.path(), "background");
    let path = folder.path().join("packed").join(WEIGHTS);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(4096).unwrap();
    match service.complete() {
        // The damage was found before the request was admitted.
        Ok(refused) => assert_eq!(refused.status(), 503),
        Err(_cut_off) => {
            let status = service.process.0.wait().unwrap();
            assert_eq!(status.code(), Some(74), "{status}");
            let mut log = String::new();
            let mut stderr = service.process.0.stderr.take().unwrap();
            stderr.read_to_string(&mut log).unwrap();
            assert!(log.contains("became shorter while it was"), "{log}");
        }
    }
}
