//! Commands in the documents can be run: scripts exist and are executable, and the binary knows every flag.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// Every document of the repository but the manuals of folders that have no commands.
fn documents() -> Vec<String> {
    let folders = [
        ".", "compare", "deploy", "docs", "examples", "release", "tests",
    ];
    let mut found = Vec::new();
    for folder in folders {
        for entry in std::fs::read_dir(crate::package_file(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") {
                found.push(format!("{folder}/{name}"));
            }
        }
    }
    assert!(found.len() > 20, "{found:?}");
    found
}

/// Code in a document: indented lines, and text between backticks.
fn code(document: &str) -> Vec<String> {
    let text = crate::read(document);
    let indented = text.lines().filter_map(|line| line.strip_prefix("    "));
    let mut code: Vec<String> = indented.map(str::to_owned).collect();
    let prose = text.lines().filter(|line| !line.starts_with("    "));
    for line in prose {
        code.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
    }
    code
}

#[test]
fn scripts_that_are_printed_are_there_and_can_be_run() {
    let mut scripts = BTreeSet::new();
    for document in documents() {
        for line in code(&document) {
            let script = line.split(' ').next().unwrap_or_default();
            let is_script = script.ends_with(".sh") || script.ends_with(".py");
            if is_script
                && ["compare/", "release/", "tests/"]
                    .iter()
                    .any(|folder| script.starts_with(folder))
            {
                scripts.insert(script.to_owned());
            }
        }
    }
    for expected in [
        "compare/run.sh",
        "compare/schemes.py",
        "release/build.sh",
        "tests/clients/load.py",
    ] {
        assert!(scripts.contains(expected), "{expected} in {scripts:?}");
    }
    for script in scripts {
        let path = crate::package_file(&script);
        let mode = std::fs::metadata(&path).unwrap_or_else(|e| panic!("{script}: {e}"));
        let is_program = mode.permissions().mode() & 0o111 != 0;
        assert!(is_program, "{script} is not executable");
        assert!(crate::read(&script).starts_with("#!"), "{script}");
    }
}

#[test]
fn scripts_without_their_arguments_say_how_they_are_used() {
    for script in [
        "compare/run.sh",
        "tests/clients/run.sh",
        "tests/clients/fuzz.sh",
        "tests/deploy/play.sh",
        "tests/deploy/validate.sh",
    ] {
        let output = Command::new(crate::package_file(script)).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{script}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(script), "{script}: {said}");
    }
}

#[test]
fn every_flag_of_a_printed_command_is_known() {
    const COMMANDS: [&str; 11] = [
        "serve",
        "run",
        "status",
        "quantize",
        "eval",
        "bench",
        "pull",
        "inspect",
        "completions",
        "man",
        "verify-savings",
    ];
    let help = COMMANDS.map(|command| {
        let output = crate::microgranite().args([command, "--help"]).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    });
    let mut checked = 0;
    for document in documents() {
        for line in code(&document) {
            let Some((_, rest)) = line.split_once("microgranite ") else {
                continue;
            };
            let rest = rest.split(" #").next().unwrap_or_default();
            let mut words = rest.split_whitespace();
            let command = words.next().unwrap_or_default();
            let Some(index) = COMMANDS.iter().position(|known| *known == command) else {
                continue;
            };
            for flag in words.filter(|word| word.starts_with("--")) {
                let flag = flag.split('=').next().unwrap_or_default();
                let flag = flag.trim_end_matches([',', '.', ')', ';']);
                assert!(help[index].contains(flag), "{document}: {line}: {flag}");
                checked += 1;
            }
        }
    }
    assert!(checked > 10, "only {checked} flags were found");
}
