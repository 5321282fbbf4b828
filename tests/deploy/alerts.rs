//! The alert rules: each has a section in the runbook and a test of both outcomes, and reads only metrics that there are.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use crate::{cluster, metrics};

/// The rules.
pub const RULES: &str = "deploy/prometheus/microgranite.yaml";
const CASES: &str = "tests/deploy/alerts.yaml";

fn parsed(path: &str) -> Value {
    serde_saphyr::from_str(&crate::read(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The rules of all groups.
fn rules() -> Vec<Value> {
    let rules = parsed(RULES);
    let groups = rules["groups"].as_array().expect("groups").iter();
    let of_group = |group: &Value| group["rules"].as_array().expect("rules").clone();
    groups.flat_map(of_group).collect()
}

/// The names of series that the rules record.
pub fn recorded() -> BTreeSet<String> {
    let all = rules();
    let names = all.iter().filter_map(|rule| rule["record"].as_str());
    names.map(str::to_owned).collect()
}

fn alerts() -> Vec<Value> {
    let all = rules().into_iter();
    all.filter(|rule| rule["alert"].is_string()).collect()
}

fn text<'a>(value: &'a Value, what: &str) -> &'a str {
    value.as_str().unwrap_or_else(|| panic!("no {what}"))
}

#[test]
fn every_alert_says_what_it_means_and_has_a_section_in_the_runbook() {
    let runbook = crate::read("docs/runbook.md");
    let sections: Vec<&str> = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .collect();
    let alerts = alerts();
    let names: Vec<&str> = alerts.iter().map(|a| text(&a["alert"], "name")).collect();
    assert_eq!(sections, names, "sections and alerts, in their order");
    for alert in &alerts {
        let name = text(&alert["alert"], "name");
        assert!(name.starts_with("Microgranite"), "{name}");
        let severity = text(&alert["labels"]["severity"], "severity");
        assert!(["page", "ticket"].contains(&severity), "{name}: {severity}");
        let annotations = &alert["annotations"];
        assert!(!text(&annotations["summary"], "summary").contains("{{"));
        assert!(text(&annotations["description"], "description").contains("{{ $labels."));
        let section = format!("docs/runbook.md#{}", name.to_lowercase());
        assert_eq!(annotations["runbook_url"], section.as_str());
    }
}

#[test]
fn the_rules_read_only_metrics_that_there_are() {
    let exposed = metrics::declared();
    let recorded = recorded();
    for rule in rules() {
        let expr = text(&rule["expr"], "expression");
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let words = expr.split(|c| !is_name(c));
        let names = words.filter(|word| {
            ["microgranite_", "microgranite:", "kube_", "container_"]
                .iter()
                .any(|prefix| word.starts_with(prefix))
        });
        let mut found = 0;
        for name in names {
            let is_known = exposed.contains_key(name)
                || recorded.contains(name)
                || cluster::find(name).is_some();
            assert!(is_known, "{name} in {expr}");
            found += 1;
        }
        assert!(found > 0, "{expr}");
    }
}

#[test]
fn every_alert_is_tested_to_fire_and_to_stay_silent() {
    let cases = parsed(CASES);
    let cases = cases["tests"].as_array().expect("tests");
    for alert in alerts() {
        let name = text(&alert["alert"], "name");
        for (outcome, expected) in [("fires", 1), ("is silent", 0)] {
            let title = format!("{name} {outcome}");
            let case = cases.iter().find(|case| case["name"] == title.as_str());
            let tested = &case.unwrap_or_else(|| panic!("no case {title}"))["alert_rule_test"][0];
            assert_eq!(tested["alertname"], name, "{title}");
            let alerts = tested["exp_alerts"].as_array().expect("a list").len();
            assert_eq!(alerts, expected, "{title}");
        }
    }
    assert_eq!(cases.len(), 2 * alerts().len());
}

#[test]
#[ignore = "needs Debian's prometheus package on PATH"]
fn promtool_accepts_the_rules_and_their_cases() {
    for arguments in [["check", "rules", RULES], ["test", "rules", CASES]] {
        let output = Command::new("promtool")
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("promtool comes with Debian's package `prometheus`");
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{arguments:?}: {printed}");
    }
}
