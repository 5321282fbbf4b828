//! Tests of the values of flags and variables: a value out of range is refused with one line, before a port is bound.

use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::process::Output;
use std::time::{Duration, Instant};

use crate::process::{microgranite, tiny};

/// 2⁶⁴ − 1.
const HUGE: &str = "18446744073709551615";

/// Runs the binary with a port that is already taken. If it got as far as binding the port, it would fail with exit
/// code 78 and name the port.
fn refused(arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String) {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = microgranite(arguments);
    let listens = arguments
        .iter()
        .any(|argument| argument.starts_with("--listen"));
    if arguments[0] == "serve" && !listens {
        command.args(["--listen", &address, "--admin-listen", &address]);
    }
    command.envs(variables.iter().copied());
    let start = Instant::now();
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    // This takes at most a second on an idle machine.
    assert!(
        start.elapsed() < Duration::from_secs(30),
        "{arguments:?} took long"
    );
    let text = String::from_utf8(stderr).unwrap();
    assert!(stdout.is_empty(), "{arguments:?}");
    assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
    assert!(text.starts_with("error: "), "{arguments:?}: {text}");
    assert!(
        !text.contains("panic") && !text.contains(&address),
        "{arguments:?}: {text}"
    );
    (status.code().expect("an exit, no signal"), text)
}

#[test]
fn numbers_out_of_range_are_bad_usage() {
    let model = &*tiny();
    let cases: &[(&str, &[&str])] = &[
        (
            "--max-connections",
            &[
                HUGE,
                "9223372036854775807",
                "2305843009213693952",
                "0",
                "65537",
            ],
        ),
        (
            "--max-batch",
            &[HUGE, "9223372036854775807", "100000000", "1025", "0", "-1"],
        ),
        ("--threads", &[HUGE, "1000000", "0", "two"]),
        ("--log", &["warning", "6", "info,loud"]),
        ("--max-queue", &[HUGE, "65537", "1e3"]),
        ("--max-queue-tokens", &["0", "16777217", HUGE]),
        ("--target-ttft", &["0", "0.05", "NaN", "inf", "86401", "-1"]),
        ("--fair-by", &["address", ""]),
        ("--max-body", &["0", "1023", HUGE, "65MiB", "99999999999G"]),
        ("--max-header", &["0", "2MiB", HUGE]),
        ("--max-prompts", &["0", "1025", HUGE]),
        ("--max-choices", &["0", "1025", HUGE]),
        ("--max-tokens", &["0", HUGE]),
        ("--max-stops", &["1025", HUGE]),
        ("--grammar-timeout", &["0", "61", HUGE, "-1"]),
        ("--max-slowdown", &["0.5", "NaN", "inf", "1e9"]),
        ("--context", &["0", HUGE]),
        ("--speculation", &["129", HUGE, "-1"]),
        ("--drain-timeout", &[HUGE, "86401", "-1"]),
        ("--kv-cache", &["", "1.5G", "99999999999999999999"]),
        (
            "--listen",
            &["8080", ":8080", "localhost", "127.0.0.1:99999"],
        ),
        ("--served-model-name", &[""]),
        ("--prefix-cache", &["maybe"]),
        ("--verify", &["sometimes"]),
        ("--kernel", &["abacus", "", "AVX2"]),
        ("--socket-mode", &["8", "66", "1777", "rw-rw----"]),
        ("--canary-interval", &[HUGE, "86401", "-1"]),
        (
            "--otlp-endpoint",
            &["", "collector:4318", "grpc://collector"],
        ),
        ("--verify-signature", &["maybe"]),
    ];
    for (flag, values) in cases {
        for value in *values {
            let argument = format!("{flag}={value}");
            let (code, text) = refused(&["serve", "--model", model, &argument], &[]);
            assert_eq!(code, 64, "{argument}: {text}");
            assert!(text.contains(flag), "{argument}: {text}");
        }
    }
    for arguments in [
        ["bench", "--shape=granite-3.3-2b", "--prompt=0"],
        [
            "bench",
            "--shape=granite-3.3-2b",
            "--prompt=18446744073709551615",
        ],
        ["bench", "--shape=granite-3.3-2b", "--prompt=512,0"],
        ["bench", "--shape=granite-3.3-2b", "--context=0"],
        ["bench", "--shape=granite-3.3-2b", "--batch=1,0"],
        ["bench", "--shape=granite-3.3-2b", "--batch=1,100000000"],
        [
            "bench",
            "--shape=granite-3.3-2b",
            "--runs=18446744073709551615",
        ],
        [
            "bench",
            "--shape=granite-3.3-2b",
            "--steps=18446744073709551615",
        ],
        ["bench", "--shape=granite-3.3-2b", "--threads=1000000"],
        ["bench", "--shape=granite-3.3-2b", "--threads=1,0"],
        ["quantize", model, "--calibration-tokens=0"],
        [
            "quantize",
            model,
            "--calibration-tokens=18446744073709551615",
        ],
        ["quantize", model, "--smooth=NaN"],
        ["quantize", model, "--range=percentile:101"],
        ["quantize", model, "--threads=1000000"],
        ["eval", model, "--tokens=18446744073709551615"],
        ["eval", model, "--threads=1000000"],
    ] {
        let mut arguments = arguments.to_vec();
        if arguments[0] == "quantize" {
            arguments.push("--output=/nowhere/at/all");
        }
        let (code, text) = refused(&arguments, &[]);
        assert_eq!(code, 64, "{arguments:?}: {text}");
    }
}

#[test]
fn what_the_model_or_the_machine_cannot_do_is_refused_before_a_port_is_bound() {
    let model = &*tiny();
    for (arguments, code, words) in [
        (["--context", "513"], 78, "512"),
        (["--kv-cache", "0"], 78, "too small"),
        (["--kv-cache", "10"], 78, "too small"),
        (["--kv-cache", "9999GiB"], 78, "limit"),
        (["--chat-template", "/nowhere"], 66, "/nowhere"),
        (["--chat-template", "/"], 66, "/"),
        (["--api-key-file", "/nowhere/keys"], 66, "/nowhere/keys"),
    ] {
        let all = [&["serve", "--model", model][..], &arguments].concat();
        let (found, text) = refused(&all, &[]);
        assert_eq!(found, code, "{arguments:?}: {text}");
        assert!(text.contains(words), "{arguments:?}: {text}");
    }
    assert_eq!(refused(&["serve", "/nowhere/at/all"], &[]).0, 66);
    let huge = [
        "bench",
        "--shape=granite-3.3-2b",
        "--batch=1024",
        "--steps=10000",
    ];
    let (code, text) = refused(&huge, &[]);
    assert_eq!(code, 78, "{text}");
    assert!(text.contains("needs") && text.contains("limit"), "{text}");
}

#[test]
fn variables_are_read_as_people_write_them_and_errors_name_them() {
    let model = &*tiny();
    let serve = ["serve", "--model", model];
    for (name, value, words) in [
        ("MICROGRANITE_TREADS", "2", "MICROGRANITE_THREADS"),
        ("MICROGRANITE_THREADS", "many", "MICROGRANITE_THREADS: "),
        ("MICROGRANITE_STRICT", "perhaps", "MICROGRANITE_STRICT: "),
        (
            "MICROGRANITE_PREFIX_CACHE",
            "perhaps",
            "MICROGRANITE_PREFIX_CACHE: ",
        ),
        ("MICROGRANITE_MODEL", "hf:nonsense", ""),
        (
            "MICROGRANITE_LOG_FORMAT",
            "xml",
            "MICROGRANITE_LOG_FORMAT: ",
        ),
    ] {
        let arguments = if name.ends_with("MODEL") {
            &serve[..1]
        } else {
            &serve
        };
        let (code, text) = refused(arguments, &[(name, value)]);
        assert_eq!(code, 64, "{name}={value}: {text}");
        assert!(text.contains(words), "{name}={value}: {text}");
    }
    let bytes = std::ffi::OsStr::from_bytes(b"\xff2");
    for name in ["MICROGRANITE_THREADS", "MICROGRANITE_MODEL"] {
        let output = microgranite(&["serve"]).env(name, bytes).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{text}");
        let named = format!("error: {name}: its value is not text in UTF-8\n");
        assert_eq!(text, named);
    }
    // Valid values are accepted, so the error is then the missing model.
    for (name, value) in [
        ("MICROGRANITE_STRICT", "1"),
        ("MICROGRANITE_STRICT", "yes"),
        ("MICROGRANITE_STRICT", "off"),
        ("MICROGRANITE_PREFIX_CACHE", "0"),
        ("MICROGRANITE_THREADS", ""),
        ("MICROGRANITE_LOG_FORMAT", ""),
        ("MICROGRANITE_KV_CACHE", ""),
        ("MICROGRANITE_PORT", "tcp://10.0.0.7:8080"),
        ("MICROGRANITE_SERVICE_HOST", "10.0.0.7"),
    ] {
        let (code, text) = refused(&["serve", "/nowhere/at/all"], &[(name, value)]);
        assert_eq!(code, 66, "{name}={value}: {text}");
    }
}

#[test]
fn flags_of_other_servers_are_explained() {
    for flag in ["--port", "--host"] {
        let (code, text) = refused(&["serve", flag, "8000"], &[]);
        assert_eq!(code, 64, "{text}");
        assert!(text.contains("--listen HOST:PORT"), "{text}");
    }
}

#[test]
fn help_is_in_parts() {
    let help = microgranite(&["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let parts: Vec<&str> = help
        .lines()
        .filter(|line| line.ends_with(':') && line.starts_with(char::is_uppercase))
        .collect();
    for part in [
        "Model:",
        "Listening:",
        "Batching and memory:",
        "Security:",
        "Logging:",
    ] {
        assert!(parts.contains(&part), "{part} is missing in {parts:?}");
    }
    // Only --help itself is left in the last part.
    let (_, rest) = help.split_once("\nOptions:\n").unwrap();
    let rest = rest.split("\n\n").next().unwrap();
    assert_eq!(
        rest.matches("  --").count() + rest.matches(", --").count(),
        1,
        "{rest}"
    );
}

/// A limit on address space, as some clusters set it, takes effect only when the memory is allocated.
#[test]
#[cfg(target_os = "linux")]
fn memory_that_the_system_refuses_is_a_line_with_sizes() {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -v 3000000; exec \"$0\" \"$@\""]);
    command.arg(microgranite(&[]).get_program());
    command.args([
        "serve",
        &tiny(),
        "--listen",
        "127.0.0.1:0",
        "--threads",
        "1",
    ]);
    command.args(["--kv-cache", "2900MiB", "--log", "error"]);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert!(
        text.contains("2.83 GiB") && text.lines().count() == 1,
        "{text}"
    );
}
