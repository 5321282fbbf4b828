//! Tests of the canary: it finds what checksums were not asked for, gives way to requests, and is no traffic.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use microgranite::engine::canary::{self, Run};
use microgranite::engine::{self, Engine, FinishReason, Generation, TokenEvent};
use microgranite::model::packed::CANARY;
use microgranite::sources::packed::WEIGHTS;
use microgranite::telemetry::Metrics;
use reqwest::blocking::{Client, Response};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fake::{Fake, Next};
use crate::process::{Running, microgranite, tiny};

const LIMIT: Duration = Duration::from_secs(60);

/// Packs the fixture.
fn packed() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("packed");
    let mut command = microgranite(&["quantize", &tiny(), "--rounding", "nearest"]);
    let output = command.arg("--output").arg(&path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    (folder, path)
}

fn record(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join(CANARY)).unwrap()).unwrap()
}

struct Service {
    _process: Running,
    url: String,
    client: Client,
}

impl Service {
    fn start(model: &Path) -> Self {
        let flags = ["serve", "--listen", "127.0.0.1:0", "--verify", "off"];
        let mut command = microgranite(&flags);
        command
            .args(["--canary-interval", "1", "--log", "off"])
            .arg(model);
        let mut process = Running(command.stdout(Stdio::piped()).spawn().unwrap());
        let lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
        let ready = lines.map(Result::unwrap).next().expect("it starts");
        let url = ready.rsplit_once(' ').unwrap().1.to_owned();
        Self {
            _process: process,
            url,
            client: Client::builder().timeout(LIMIT).build().unwrap(),
        }
    }

    fn get(&self, path: &str) -> Response {
        let url = format!("{}{path}", self.url);
        self.client.get(url).send().unwrap()
    }

    fn status(&self) -> Value {
        let models: Value = self.get("/v1/models").json().unwrap();
        models["data"][0]["canary"].clone()
    }

    fn metric(&self, line: &str) -> Option<u64> {
        let text = self.get("/metrics").text().unwrap();
        let found = text.lines().find_map(|found| found.strip_prefix(line));
        found.map(|value| value.trim().parse().unwrap())
    }

    /// Waits until it says so of its canary.
    fn reaches(&self, state: &str) {
        let start = Instant::now();
        while self.status()["state"] != state {
            assert!(start.elapsed() < LIMIT, "not {state}: {}", self.status());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn is_out_of_service(&self) {
        self.reaches("failed");
        let unready = self.get("/readyz");
        assert_eq!(unready.status(), 503);
        let body: Value = unready.json().unwrap();
        assert_eq!(body["error"]["code"], "canary_failed");
        let body = json!({"prompt": [3, 4], "max_tokens": 2});
        let url = format!("{}/v1/completions", self.url);
        let refused = self.client.post(url).json(&body).send().unwrap();
        assert_eq!(refused.status(), 503);
        assert_eq!(self.status()["state"], "failed");
        assert_eq!(self.metric("microgranite_canary_failures_total"), Some(1));
    }
}

#[test]
fn a_single_flipped_bit_takes_the_service_out() {
    let (_folder, path) = packed();
    assert_eq!(record(&path)["prompts"].as_array().unwrap().len(), 3);
    let service = Service::start(&path);
    service.reaches("passed");
    assert!(service.status()["last_run"].as_u64().unwrap() > 1_700_000_000);
    // It goes on, and counts as nobody's traffic.
    let first = service.metric("microgranite_canary_last_run_timestamp_seconds");
    let start = Instant::now();
    while service.metric("microgranite_canary_last_run_timestamp_seconds") == first {
        assert!(start.elapsed() < LIMIT, "it does not run again");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(service.get("/readyz").status(), 200);
    for untouched in [
        "microgranite_prompt_tokens_total",
        "microgranite_generation_tokens_total",
        "microgranite_batch_rows_count",
        "microgranite_time_to_first_token_seconds_count",
        "microgranite_queue_wait_seconds_count",
        "microgranite_requests_running",
    ] {
        assert_eq!(service.metric(untouched), Some(0), "{untouched}");
    }

    let weights = path.join(WEIGHTS);
    let mut bytes = Vec::new();
    File::open(&weights)
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let name = "model.layers.0.mlp.down_proj.codes";
    let at = 8 + header + metadata.info(name).unwrap().data_offsets.0;
    let mut file = OpenOptions::new().write(true).open(&weights).unwrap();
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.write_all(&[bytes[at] ^ 128]).unwrap();
    service.is_out_of_service();
}

#[test]
fn answers_that_are_not_those_recorded_take_the_service_out() {
    let (_folder, path) = packed();
    let mut wrong = record(&path);
    let prompts = wrong["prompts"].as_array_mut().unwrap();
    let answers = prompts.iter_mut().map(|prompt| &mut prompt["answer"]);
    let mut sure = answers.filter(|answer| !answer.as_array().unwrap().is_empty());
    let answer = sure.next().expect("one answer is sure");
    let id = answer[0].as_u64().unwrap();
    answer[0] = json!(id ^ 1);
    std::fs::write(path.join(CANARY), wrong.to_string()).unwrap();
    Service::start(&path).is_out_of_service();
}

#[test]
fn a_model_without_a_record_is_compared_with_itself() {
    let (_folder, path) = packed();
    std::fs::remove_file(path.join(CANARY)).unwrap();
    for model in [&path, Path::new(&tiny())] {
        let service = Service::start(model);
        service.reaches("passed");
        assert_eq!(service.get("/readyz").status(), 200);
    }
}

#[test]
fn a_record_that_makes_no_sense_is_one_line() {
    let (_folder, path) = packed();
    let good = record(&path);
    let with = |pointer: &str, value: Value| {
        let mut record = good.clone();
        *record.pointer_mut(pointer).unwrap() = value;
        record.to_string()
    };
    for (text, words) in [
        ("{".to_owned(), "JSON"),
        (with("/format", json!(2)), "format"),
        (with("/prompts/0/prompt", json!([999_999])), "prompts"),
        (with("/prompts/0/prompt", json!([])), "prompts"),
        (with("/prompts/0/prompt", json!(vec![3; 100])), "prompts"),
        (with("/prompts", json!([])), "prompts"),
        (with("/prompts/0/answer", json!([-1])), "JSON"),
        (" ".repeat(2 << 20), "length"),
    ] {
        std::fs::write(path.join(CANARY), &text).unwrap();
        let mut command = microgranite(&["serve", "--listen", "127.0.0.1:0", "--log", "error"]);
        let output = command.arg(&path).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(65), "{words}: {error}");
        assert!(error.contains(words) && error.contains(CANARY), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

/// The first tokens of the sequences that the model computed, row by row.
type Computed = Arc<Mutex<Vec<u32>>>;

fn engine(step: Duration) -> (Engine, Arc<Metrics>, Computed) {
    let computed = Computed::default();
    let log = Arc::clone(&computed);
    let model = Fake::new(move |before| {
        log.lock().unwrap().push(before[0]);
        Next::Any(u64::from(before[0]) + before.len() as u64)
    });
    let metrics = Arc::new(Metrics::new());
    let engine = Engine::start(
        Box::new(model.with_step_time(step)),
        engine::Settings::default(),
        Arc::clone(&metrics),
    );
    (engine.unwrap(), metrics, computed)
}

fn generation(first: u32, max_tokens: usize) -> Generation {
    Generation {
        prompt: vec![first],
        max_tokens,
        ..Generation::default()
    }
}

#[tokio::test]
async fn what_runs_in_the_background_gives_way_after_one_step() {
    let (engine, metrics, computed) = engine(Duration::from_millis(20));
    let mut background = engine.submit_in_background(generation(7, 1000)).unwrap();
    for _ in 0..3 {
        assert!(matches!(
            background.next().await,
            Some(TokenEvent::Token(_))
        ));
    }
    let before = computed.lock().unwrap().len();
    let mut streams = engine.submit(vec![generation(9, 5)]).unwrap();
    assert!(
        engine.submit_in_background(generation(7, 5)).is_none(),
        "it is busy"
    );
    for _ in 0..5 {
        assert!(matches!(
            streams[0].next().await,
            Some(TokenEvent::Token(_))
        ));
    }
    // The tokens are counted a moment after they are sent, and before the end is.
    let end = streams[0].next().await;
    assert_eq!(end, Some(TokenEvent::Finished(FinishReason::Length)));
    let after = computed.lock().unwrap()[before..].to_vec();
    assert!(
        after.iter().filter(|first| **first == 7).count() <= 1,
        "{after:?}"
    );
    let end = loop {
        match background.next().await {
            Some(TokenEvent::Token(_)) => {}
            end => break end,
        }
    };
    assert_eq!(end, Some(TokenEvent::Displaced));
    assert_eq!(metrics.generation_tokens_total.get(), 5);
    assert_eq!(metrics.prompt_tokens_total.get(), 1);
    assert_eq!(metrics.time_to_first_token_seconds.get_sample_count(), 1);
}

#[tokio::test]
async fn a_run_is_complete_displaced_or_failed() {
    let prompts = [vec![3, 4, 5], vec![6]];
    let (engine, metrics, _) = engine(Duration::ZERO);
    assert!(canary::fits(&engine, &prompts));
    assert!(!canary::fits(&engine, &[vec![]]));
    assert!(!canary::fits(&engine, &[vec![999_999]]));
    let first = canary::run(&engine, &prompts).await;
    let Run::Complete(answers) = &first else {
        panic!("{first:?}");
    };
    assert!(
        answers
            .iter()
            .all(|answer| answer.begins_with(answer.sure_tokens()))
    );
    assert_eq!(canary::run(&engine, &prompts).await, first);
    assert_eq!(metrics.generation_tokens_total.get(), 0);
    let _long = engine.submit(vec![generation(9, 3000)]).unwrap();
    assert_eq!(canary::run(&engine, &prompts).await, Run::Displaced);

    let broken = Engine::start(
        Box::new(Fake::new(|_| Next::NotANumber)),
        engine::Settings::default(),
        Arc::new(Metrics::new()),
    );
    assert_eq!(canary::run(&broken.unwrap(), &prompts).await, Run::Failed);
}
