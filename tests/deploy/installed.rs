//! The files that packages install, and the compose file, fit the server: its variables, exit codes and limits in time.

use std::collections::BTreeSet;

/// What `microgranite serve --help` prints.
fn help() -> String {
    let output = crate::microgranite().args(["serve", "--help"]).output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

/// The words of a text that are names of our variables.
fn variables(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("MICROGRANITE_") && *word != "MICROGRANITE_BUILD")
        .collect()
}

/// The value of a setting in a file of `NAME=value` lines.
fn setting<'a>(text: &'a str, name: &str) -> &'a str {
    let values: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        .collect();
    assert_eq!(values.len(), 1, "{name}: {values:?}");
    values[0]
}

const SERVICE: &str = "deploy/systemd/microgranite.service";
const DEFAULT: &str = "deploy/systemd/microgranite.default";
const QUADLET: &str = "deploy/podman/microgranite.container";
const COMPOSE: &str = "deploy/compose/compose.yaml";

#[test]
fn variables_are_those_of_the_server() {
    let help = help();
    for (file, least) in [(SERVICE, 1), (DEFAULT, 4), (COMPOSE, 3), ("Dockerfile", 3)] {
        let text = crate::read(file);
        let variables = variables(&text);
        assert!(variables.len() >= least, "{file}: {variables:?}");
        for name in variables {
            assert!(help.contains(&format!("[env: {name}=")), "{file}: {name}");
        }
    }
}

/// The settings that the package installs are read by systemd and not by a shell, and name no model.
#[test]
fn the_settings_of_the_package_name_no_model() {
    let text = crate::read(DEFAULT);
    assert_eq!(setting(&text, "MICROGRANITE_MODEL"), "");
    let active = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    assert_eq!(active.count(), 1);
    let output = crate::microgranite()
        .args(["serve", "--model", ""])
        .output()
        .unwrap();
    assert_eq!(
        output.status.code(),
        Some(64),
        "an empty reference is bad usage"
    );
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(line.contains("--model"), "{line}");
}

#[test]
fn what_another_start_cannot_mend_is_not_started_again() {
    let output = crate::microgranite().arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for file in [SERVICE, QUADLET] {
        let text = crate::read(file);
        let codes: Vec<_> = setting(&text, "RestartPreventExitStatus")
            .split(' ')
            .collect();
        assert_eq!(codes, ["64", "65", "66", "78"], "{file}");
        for code in codes {
            assert!(help.contains(&format!("{code} ")), "{code}");
        }
    }
}

/// The server finishes running answers for 120 s, and ends itself 8 s later if something hangs.
#[test]
fn running_answers_have_time_to_finish() {
    assert!(help().contains("[default: 120]"));
    for (file, name) in [(SERVICE, "TimeoutStopSec"), (QUADLET, "TimeoutStopSec")] {
        let text = crate::read(file);
        let seconds: u32 = setting(&text, name).parse().unwrap();
        assert!(seconds > 128, "{file}: {seconds}");
    }
    let text = crate::read(COMPOSE);
    let grace = text.split_once("stop_grace_period: ").unwrap().1;
    let seconds: u32 = grace.split_once("s\n").unwrap().0.parse().unwrap();
    assert!(seconds > 128, "{COMPOSE}: {seconds}");
}
