//! Tests that what the server says about its memory is what the kernel counts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use reqwest::blocking::Client;
use serde_json::{Value, json};

use crate::process::{Running, microgranite, running_with, tiny};

/// The unexplained part of the resident memory at most.
const MOST_UNEXPLAINED: f64 = 0.05;

/// The samples of a scrape, by series.
fn scrape(url: &str) -> BTreeMap<String, f64> {
    // Figures are read again after a second.
    std::thread::sleep(Duration::from_millis(1100));
    let text = reqwest::blocking::get(format!("{url}/metrics")).unwrap();
    let text = text.text().unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        let name = series.strip_prefix("microgranite_")?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    samples.filter_map(sample).collect()
}

/// The resident memory of another process as the kernel counts it.
fn resident(process: &Running) -> f64 {
    let status = format!("/proc/{}/status", process.0.id());
    let status = std::fs::read_to_string(status).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.unwrap().trim().trim_end_matches(" kB");
    number.parse::<f64>().unwrap() * 1024.0
}

/// A component of the resident memory.
fn component(samples: &BTreeMap<String, f64>, name: &str) -> f64 {
    samples[&format!("memory_bytes{{component=\"{name}\"}}")]
}

/// Compares a scrape with the kernel's figure.
fn check(process: &Running, url: &str, when: &str) -> BTreeMap<String, f64> {
    let samples = scrape(url);
    let parts = samples
        .iter()
        .filter(|(name, _)| name.starts_with("memory_bytes"));
    let sum: f64 = parts.map(|(_, bytes)| bytes).sum();
    let unexplained = samples["memory_unexplained_bytes"];
    let counted = resident(process);
    let share = unexplained / counted;
    println!(
        "{when}: {counted} bytes resident, {:.2} % unexplained",
        100.0 * share
    );
    assert!(
        share.abs() < MOST_UNEXPLAINED,
        "{when}: {unexplained} of {counted}, {samples:#?}"
    );
    // The kernel's own figure is a moment younger.
    let difference = (sum + unexplained - counted).abs() / counted;
    assert!(
        difference < 0.03,
        "{when}: {sum} + {unexplained} is not {counted}"
    );
    samples
}

/// Keeps the server busy with requests of many lengths, four at a time.
fn load(url: &str, time: Duration) {
    let deadline = Instant::now() + time;
    std::thread::scope(|scope| {
        for client in 0..4 {
            scope.spawn(move || {
                let http = Client::new();
                for n in 0.. {
                    if n > 0 && Instant::now() > deadline {
                        break;
                    }
                    let words = "the cat sat on the mat and looked at the moon. ".repeat(1 + n % 5);
                    let body = json!({
                        "prompt": format!("{client} {n} {words}"), "max_tokens": 4 + n % 24, "ignore_eos": true,
                        "stream": n % 2 == 0,
                    });
                    let answer = http.post(format!("{url}/v1/completions")).json(&body).send();
                    let answer = answer.unwrap();
                    assert_eq!(answer.status(), 200);
                    answer.bytes().unwrap();
                }
            });
        }
    });
}

/// At the start, in the middle of the load, and after it.
fn explained(model: &str, flags: &[&str], time: Duration) -> [BTreeMap<String, f64>; 3] {
    // What the canary computes right after the start may already be in the first sample, or not.
    let mut all = vec!["--threads", "2", "--canary-interval", "0"];
    all.extend(flags);
    let (process, url) = running_with(model, &all);
    let first = check(&process, &url, "at the start");
    let busy = std::thread::scope(|scope| {
        let busy = scope.spawn(|| load(&url, time));
        std::thread::sleep(time / 2);
        let samples = check(&process, &url, "under load");
        busy.join().unwrap();
        samples
    });
    [first, busy, check(&process, &url, "after it")]
}

/// A model and flags: in memory of its own, in a mapped file, and copied from it.
fn all_placements(model: &str, time: Duration) {
    let folder = tempfile::tempdir().unwrap();
    let packed = folder.path().join("packed").display().to_string();
    let mut quantize = microgranite(&["quantize", model, "--output", &packed]);
    quantize.args(["--rounding", "nearest", "--log", "error"]);
    assert!(quantize.status().unwrap().success());
    let [own, _, _] = explained(model, &[], time);
    assert_eq!(own["weights_file_bytes{state=\"mapped\"}"], 0.0);
    let [mapped, ..] = explained(&packed, &["--weights", "mmap"], time);
    let [copied, _, after] = explained(&packed, &["--weights", "copy"], time);

    let file = mapped["weights_file_bytes{state=\"mapped\"}"];
    let in_memory = mapped["weights_file_bytes{state=\"resident\"}"];
    assert!(
        in_memory > 0.8 * file && in_memory < file + 65536.0,
        "{in_memory} of {file}"
    );
    assert_eq!(component(&mapped, "weights"), in_memory);
    let codes = |samples: &BTreeMap<String, f64>, dtype: &str| -> f64 {
        let of = format!("dtype=\"{dtype}\"");
        let parts = samples.iter();
        let parts =
            parts.filter(|(name, _)| name.starts_with("model_weight_bytes") && name.contains(&of));
        parts.map(|(_, bytes)| bytes).sum()
    };
    for samples in [&own, &copied] {
        assert_eq!(component(samples, "weights"), codes(samples, "int8"));
        assert_eq!(component(samples, "scales"), codes(samples, "f32"));
    }
    let cache = component(&after, "kv_cache");
    assert!(cache > 0.0 && cache <= after["kv_cache_bytes{state=\"reserved\"}"] + 1e6);
    assert!(component(&after, "step_buffers") > component(&copied, "step_buffers"));
    assert!(after["process_peak_resident_bytes"] >= cache);
    assert!(after["process_proportional_bytes"] > 0.0);
    assert!(after["cgroup_memory_bytes{kind=\"limit\"}"] > after["process_peak_resident_bytes"]);
}

#[test]
fn nearly_all_memory_of_a_small_model_is_explained() {
    all_placements(&tiny(), Duration::from_secs(2));
}

#[test]
#[ignore = "needs the demo model: run `microgranite pull demo`"]
fn nearly_all_memory_of_the_demo_model_is_explained() {
    all_placements("demo", Duration::from_secs(6));
}

#[test]
#[ignore = "fills a gigabyte of memory"]
fn nearly_all_memory_of_a_random_model_is_explained() {
    let shape = ["bench", "--shape", "granite-4.0-350m", "--prompt", "16"];
    let short = ["--batch", "1", "--runs", "1", "--steps", "1", "--json"];
    let output = microgranite(&[&shape[..], &short].concat())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let memory = serde_json::from_slice::<Value>(&output.stdout).unwrap()["memory"].take();
    let resident = memory["resident_bytes"].as_f64().unwrap();
    let unexplained = memory["unexplained_bytes"].as_f64().unwrap();
    println!("{memory}");
    assert!(resident > 3e8, "{memory}");
    assert!(unexplained.abs() < MOST_UNEXPLAINED * resident, "{memory}");
}

#[test]
fn the_capacity_shrinks_while_answers_run() {
    let flags = ["--max-batch", "3", "--threads", "1", "--context", "256"];
    let (_process, url) = running_with(&tiny(), &flags);
    let capacity = || -> Value {
        let answer = reqwest::blocking::get(format!("{url}/v1/capacity")).unwrap();
        assert_eq!(answer.status(), 200);
        answer.json().unwrap()
    };
    let idle = capacity();
    assert_eq!(idle["object"], "capacity");
    assert_eq!(idle["model"], "granite-3-tiny");
    assert_eq!(idle["running"], 0);
    assert_eq!(
        idle["now"][0],
        json!({"tokens": 256, "more": 3, "limited_by": "batch"})
    );
    assert!(
        idle["memory_limit_bytes"].as_u64().unwrap() > 1 << 28,
        "{idle}"
    );
    let formats = idle["formats"].as_array().unwrap();
    let names: Vec<&Value> = formats.iter().map(|format| &format["dtype"]).collect();
    assert_eq!(names, ["int8", "bf16", "f32"]);
    for pair in formats.windows(2) {
        let [less, more] = pair else { unreachable!() };
        let number = |format: &Value, name: &str| format[name].as_u64().unwrap();
        assert!(
            number(less, "weight_bytes") < number(more, "weight_bytes"),
            "{idle}"
        );
        assert!(number(less, "bytes_per_token") < number(more, "bytes_per_token"));
        assert!(number(less, "replicas") >= number(more, "replicas"));
        let count = |format: &Value| format["sequences"][0]["count"].as_u64().unwrap();
        assert!(count(less) > count(more), "{idle}");
    }

    let client = Client::new();
    let body = json!({"prompt": "the cat", "max_tokens": 240, "ignore_eos": true, "stream": true});
    let answer = client
        .post(format!("{url}/v1/completions"))
        .json(&body)
        .send()
        .unwrap();
    assert_eq!(answer.status(), 200);
    // The first event is there, so it runs; unless it has ended meanwhile.
    let busy = capacity();
    let running = busy["running"].as_u64().unwrap();
    assert_eq!(busy["now"][0]["more"], 3 - running, "{busy}");
    drop(answer);
}
