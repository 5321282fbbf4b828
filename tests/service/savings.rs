//! Tests of `verify-savings`, and of the server that publishes what it measured.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::process::{microgranite, running_with, tiny};

/// As little as can be measured.
const SHORT: [&str; 8] = [
    "--tokens",
    "64",
    "--prompt",
    "24",
    "--steps",
    "3",
    "--threads",
    "1",
];

fn run(arguments: &[&str]) -> Output {
    let mut command = microgranite(&["verify-savings"]);
    command.args(arguments).output().unwrap()
}

fn json(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap()
}

fn file(path: &Path) -> Value {
    json(&std::fs::read(path).unwrap())
}

#[test]
fn both_sides_are_measured_written_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let (out, plot) = (folder.path().join("s.json"), folder.path().join("s.svg"));
    let (out_text, plot_text) = (out.display().to_string(), plot.display().to_string());
    let output = run(&[
        &SHORT[..],
        &[&tiny(), "--json", "--out", &out_text, "--plot", &plot_text],
    ]
    .concat());
    assert!(output.status.success(), "{output:?}");
    let found = json(&output.stdout);
    assert_eq!(found, file(&out));
    assert_eq!(found["model"], "granite-3-tiny");
    for side in ["int8", "f32"] {
        let side = &found[side];
        let number = |name: &str| side[name].as_f64().unwrap();
        // A program and its libraries take megabytes, whatever they run.
        assert!(number("resident_bytes") > 2e6, "{side}");
        assert!(number("peak_bytes") >= number("resident_bytes"), "{side}");
        assert!(
            number("ready_seconds") > 0.0 && number("cpu_seconds") > 0.0,
            "{side}"
        );
        assert!(number("prefill_tokens_per_second") > 0.0, "{side}");
        assert!(number("decode_tokens_per_second") > 0.0, "{side}");
    }
    assert_eq!(found["tokens"], 63);
    let kl = found["kl_mean"].as_f64().unwrap();
    assert!(kl > 0.0 && kl < 0.1, "int8 differs a little: {kl}");
    let drawn = std::fs::read_to_string(plot).unwrap();
    assert!(drawn.contains("granite-3-tiny: what int8 saves"), "{drawn}");
}

#[test]
fn a_packed_model_keeps_the_result_and_the_server_publishes_it() {
    let folder = tempfile::tempdir().unwrap();
    let packed = folder.path().join("packed").display().to_string();
    let tiny = tiny();
    let mut quantize = microgranite(&["quantize", &tiny, "-o", &packed, "--rounding", "nearest"]);
    assert!(quantize.output().unwrap().status.success());
    let alone = run(&[&packed]);
    assert_eq!(alone.status.code(), Some(64));
    let line = String::from_utf8(alone.stderr).unwrap();
    assert!(line.contains("--against"), "{line}");

    let output = run(&[&SHORT[..], &[&packed, "--against", &tiny]].concat());
    assert!(output.status.success(), "{output:?}");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(
        table.contains("% of f32") && table.contains("mean KL"),
        "{table}"
    );
    let kept = file(&Path::new(&packed).join("savings.json"));
    // The codes of a packed model are in the mapped file.
    assert!(kept["int8"]["resident_file_bytes"].as_u64().unwrap() > 0);

    let (_process, url) = running_with(&packed, &["--threads", "1"]);
    let get = |path: &str| {
        let answer = reqwest::blocking::get(format!("{url}{path}")).unwrap();
        answer.text().unwrap()
    };
    let models = json(get("/v1/models").as_bytes());
    assert_eq!(models["data"][0]["quantization"]["savings"], kept);
    let metrics = get("/metrics");
    let resident = &kept["f32"]["resident_bytes"];
    let line =
        format!("microgranite_savings_measured_resident_bytes{{dtype=\"f32\"}} {resident}\n");
    assert!(metrics.contains(&line), "{line} in {metrics}");
    assert!(metrics.contains("microgranite_savings_measured_divergence{measure=\"kl_mean\"}"));
    // The machine of the test may say its energy or not; a figure is there in the first case only.
    let says = !kept["f32"]["joules_per_token"].is_null();
    assert_eq!(metrics.contains("savings_measured_joules_per_token{"), says);
}

#[test]
fn a_file_that_is_no_measurement_is_refused_before_the_port_is_bound() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("savings.json");
    std::fs::write(&path, "{\"format\": 1}").unwrap();
    let (tiny, path) = (tiny(), path.display().to_string());
    let arguments = [
        "serve",
        "--model",
        &tiny,
        "--listen",
        "127.0.0.1:0",
        "--savings",
        &path,
    ];
    let refused = microgranite(&arguments).output().unwrap();
    assert_eq!(refused.status.code(), Some(65), "{refused:?}");
    let line = String::from_utf8(refused.stderr).unwrap();
    assert!(
        line.contains("savings.json: savings: missing field"),
        "{line}"
    );
    let nowhere = [
        "serve",
        "--model",
        &tiny,
        "--listen",
        "127.0.0.1:0",
        "--savings",
        "/nowhere",
    ];
    let refused = microgranite(&nowhere).output().unwrap();
    assert_eq!(refused.status.code(), Some(66), "{refused:?}");
}

#[test]
fn what_cannot_be_measured_is_refused_in_one_line() {
    let tiny = tiny();
    for (arguments, code, problem) in [
        (
            vec![tiny.as_str(), "--plot", "picture.png"],
            64,
            "--plot draws SVG",
        ),
        (vec![&tiny, "--prompt", "1000000"], 78, "--prompt 1000000"),
        (vec![&tiny, "--steps", "0"], 64, "--steps"),
        (vec!["./nowhere"], 66, "nowhere"),
    ] {
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?} {output:?}");
        let line = String::from_utf8(output.stderr).unwrap();
        assert!(line.contains(problem), "{arguments:?}: {line}");
    }
}
