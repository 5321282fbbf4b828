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
