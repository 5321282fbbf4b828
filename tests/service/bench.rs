//! `microgranite bench` on the small checkpoint.

use serde_json::Value;

use crate::process::{microgranite, tiny};

#[test]
fn figures_come_with_what_the_threads_were_given_of_the_machine() {
    // Some 6,000 steps. The kernel counts processor time in hundredths of a second, and the benchmark must last a few
    // dozen of them.
    let flags = [
        "--prompt", "64", "--batch", "1", "--runs", "20", "--steps", "300",
    ];
    let bench = |more: &[&str]| {
        let mut command = microgranite(&["bench", "--model", &tiny()]);
        let output = command.args(flags).args(more).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let report: Value = serde_json::from_str(&bench(&["--json"])).unwrap();
    assert!(report["decode"][0]["share_of_roofline"].is_number());
    let machine = &report["machine"];
    if std::fs::exists("/proc/stat").unwrap() {
        let share = machine["cpu"]["share"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&share), "{share}");
        for name in ["others_cpus", "stolen_cpus", "machine_cpus"] {
            assert!(machine["cpu"][name].as_f64().unwrap() >= 0.0, "{name}");
        }
        assert!(machine["undisturbed"].is_boolean());
        let table = bench(&[]);
        let (_, given) = table.split_once("\ncpu        the threads ran ").unwrap();
        assert!(given.contains(" % of the time, others used "), "{table}");
    }
}

#[test]
fn the_instruction_set_can_be_chosen_by_a_flag_or_a_variable() {
    let flags = [
        "--prompt", "8", "--batch", "1", "--runs", "1", "--steps", "1", "--json",
    ];
    let kernel_of = |command: &mut std::process::Command| {
        let output = command.args(flags).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["machine"]["isa"].as_str().unwrap().to_owned()
    };
    let bench = || microgranite(&["bench", "--model", &tiny()]);
    assert_eq!(kernel_of(bench().args(["--kernel", "scalar"])), "scalar");
    assert_eq!(
        kernel_of(bench().env("MICROGRANITE_KERNEL", "scalar")),
        "scalar"
    );
}

#[test]
fn several_numbers_of_threads_are_measured_one_after_another() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let bench = |threads: &str, more: &[&str]| {
        let mut command = microgranite(&["bench", "--model", &tiny(), "--threads", threads]);
        let flags = [
            "--prompt", "8", "--batch", "1,2", "--runs", "1", "--steps", "1",
        ];
        let output = command.args(flags).args(more).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        String::from_utf8(output.stdout).unwrap()
    };
    // A number that stands there twice, or above the cores, is measured once.
    let report: Value = serde_json::from_str(&bench("1,1,2,128", &["--json"])).unwrap();
    let mut expected = vec![1, 2.min(cores), 128.min(cores)];
    expected.dedup();
    if expected.len() > 1 {
        let work = report["work"].as_array().unwrap();
        let named = |work: &Value| format!("{} {}", work["kind"], work["size"]);
        let named: Vec<String> = work.iter().map(named).collect();
        assert_eq!(named, ["\"prefill\" 8", "\"decode\" 1", "\"decode\" 2"]);
        for work in work {
            let rates = work["rates"].as_array().unwrap();
            let threads: Vec<usize> = (rates.iter())
                .map(|rate| rate["threads"].as_u64().unwrap() as usize)
                .collect();
            assert_eq!(threads, expected);
            assert_eq!(rates[0]["efficiency"], 1.0);
            for rate in rates {
                assert!(rate["tok_s"].as_f64().unwrap() > 0.0, "{rate}");
                let per_thread = |rate: &Value| {
                    rate["tok_s"].as_f64().unwrap() / rate["threads"].as_f64().unwrap()
                };
                let expected = per_thread(rate) / per_thread(&rates[0]);
                let found = rate["efficiency"].as_f64().unwrap();
                assert!((found - expected).abs() < 1e-9, "{rate}");
            }
        }
        assert!(bench("1,2", &[]).contains("efficiency"));
    }
    // One number gives the whole report, as ever.
    let report: Value = serde_json::from_str(&bench("1", &["--json"])).unwrap();
    assert!(report["decode"][0]["share_of_roofline"].is_number());
}

#[test]
fn prompts_and_the_context_are_measured_as_asked() {
    let flags = [
        "--prompt", "8,70", "--batch", "1,2", "--runs", "1", "--steps", "1",
    ];
    let bench = |more: &[&str]| {
        let mut command = microgranite(&["bench", "--model", &tiny()]);
        command.args(flags).args(more).output().unwrap()
    };
    let output = bench(&["--context", "130", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = |list: &str, name: &str| -> Vec<u64> {
        let entries = report[list].as_array().unwrap().iter();
        entries.map(|entry| entry[name].as_u64().unwrap()).collect()
    };
    assert_eq!(all("prefill", "tokens"), [8, 70]);
    assert_eq!(all("decode", "context"), [130, 130]);
    // A step reads the weights once, and the keys and values of each stream.
    let model = |name: &str| report["model"][name].as_f64().unwrap();
    for decode in report["decode"].as_array().unwrap() {
        let number = |name: &str| decode[name].as_f64().unwrap();
        let bytes = number("gb_s") * number("step_ms") * 1e6;
        let cached = number("streams") * 130.0 * model("kv_bytes_per_token");
        let expected = model("bytes_per_step") + cached;
        assert!(
            (bytes / expected - 1.0).abs() < 1e-9,
            "{bytes} is not {expected}"
        );
    }
    let table = String::from_utf8(bench(&["--context", "130"]).stdout).unwrap();
    assert!(
        table.contains("\ncontext    130 tokens before each stream's decoding\n"),
        "{table}"
    );
    let refused = bench(&["--context", "512"]);
    assert_eq!(refused.status.code(), Some(78), "{refused:?}");
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(
        error.contains("--context") && error.contains("513") && error.contains("512"),
        "{error}"
    );
}
