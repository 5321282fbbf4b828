//! `quantize` as a process: its errors, and what remains when it is killed.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use microgranite::model::Placement;
use microgranite::sources::packed::{QUANTIZATION, WEIGHTS};
use rand::{Rng, RngExt, SeedableRng};

use crate::{fixture, open, try_load, try_open};

/// Skips the calibration, which is most of the work on a small model.
const QUICK: [&str; 2] = ["--rounding", "nearest"];

fn quantize(source: &Path, output: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_microgranite"));
    command.env_remove("MICROGRANITE_ASSETS");
    command.args(["quantize", "--log", "error"]);
    command.arg(source).arg("--output").arg(output).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(source: &Path, output: &Path, more: &[&str]) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = quantize(source, output, more).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_folder_is_written_whole_with_everything_that_serve_needs() {
    let home = tempfile::tempdir().unwrap();
    let output = home.path().join("new/packed");
    let source = fixture("granite-3-tiny");
    let (code, stdout, stderr) = run(&source, &output, &[]);
    assert_eq!((code, &*stderr), (0, ""));
    assert!(
        stdout.contains("symmetric per channel, absmax, rotation full, compensated"),
        "{stdout}"
    );
    assert!(stdout.contains("dB"), "{stdout}");
    assert_eq!(names(output.parent().unwrap()), ["packed"]);
    for name in ["config.json", "tokenizer.json", "generation_config.json"] {
        let read = |folder: &Path| fs::read(folder.join(name)).unwrap();
        assert_eq!(read(&output), read(&source), "{name}");
    }
    let (float, packed) = (open(&source), open(&output));
    assert_eq!(packed.eos_token_ids, float.eos_token_ids);
    assert_eq!(packed.config, float.config);
    try_load(&packed, Placement::Mmap).unwrap();
}

#[test]
fn nothing_is_overwritten_unasked_and_only_a_packed_model_at_all() {
    let home = tempfile::tempdir().unwrap();
    let source = fixture("granite-3-tiny");
    let output = home.path().join("packed");
    assert_eq!(run(&source, &output, &QUICK).0, 0);
    let before = fs::read(output.join(QUANTIZATION)).unwrap();

    let (code, _, stderr) = run(
        &source,
        &output,
        &["--granularity", "group", "--rounding", "nearest"],
    );
    assert_eq!(code, 78, "{stderr}");
    assert!(stderr.contains("--force"), "{stderr}");
    assert_eq!(fs::read(output.join(QUANTIZATION)).unwrap(), before);
    let (code, _, stderr) = run(
        &source,
        &output,
        &["--granularity", "group", "--rounding", "nearest", "--force"],
    );
    assert_eq!(code, 0, "{stderr}");
    assert_ne!(fs::read(output.join(QUANTIZATION)).unwrap(), before);
    assert_eq!(names(home.path()), ["packed"]);

    let precious = home.path().join("precious");
    fs::create_dir(&precious).unwrap();
    // An empty folder may be replaced.
    assert_eq!(run(&source, &precious, &QUICK).0, 0);
    fs::remove_dir_all(&precious).unwrap();
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("letters"), "from home").unwrap();
    for more in [&QUICK[..], &["--force"]] {
        let (code, _, stderr) = run(&source, &precious, more);
        assert_eq!((code, stderr.lines().count()), (78, 1), "{stderr}");
        assert_eq!(names(&precious), ["letters"]);
    }
    let file = precious.join("letters");
    assert_eq!(run(&source, &file, &["--force"]).0, 78);
    assert_eq!(fs::read_to_string(&file).unwrap(), "from home");
    assert_eq!(run(&output, &home.path().join("again"), &[]).0, 64);
    assert_eq!(
        run(Path::new("/nowhere"), &home.path().join("again"), &[]).0,
        66
    );
    let codes = fixture("granite-3-tiny-w8a8");
    for more in [&["--rounding", "compensated"][..], &["--smooth", "0.5"]] {
        let (code, _, stderr) = run(&codes, &home.path().join("again"), more);
        assert_eq!((code, stderr.lines().count()), (64, 1), "{stderr}");
    }
    let nothing_to_calibrate = ["--calibrate", "text.txt", "--rounding", "nearest"];
    assert_eq!(
        run(&source, &home.path().join("again"), &nothing_to_calibrate).0,
        64
    );
    assert_eq!(names(home.path()), ["packed", "precious"]);
}

#[test]
fn leftovers_of_a_killed_run_are_removed_unless_it_still_runs() {
    let home = tempfile::tempdir().unwrap();
    let (source, output) = (fixture("granite-3-tiny"), home.path().join("packed"));
    let left = home.path().join(".packed.partial");
    fs::create_dir(&left).unwrap();
    fs::write(left.join(WEIGHTS), "half").unwrap();
    let running = fs::File::open(&left).unwrap();
    running.lock().unwrap();
    let (code, _, stderr) = run(&source, &output, &QUICK);
    assert_eq!(code, 78, "{stderr}");
    assert!(stderr.contains("another run"), "{stderr}");
    drop(running);
    assert_eq!(run(&source, &output, &QUICK).0, 0);
    assert_eq!(names(home.path()), ["packed"]);
}

#[test]
fn a_checkpoint_that_turns_out_bad_leaves_nothing_behind() {
    let home = tempfile::tempdir().unwrap();
    let source = home.path().join("source");
    fs::create_dir(&source).unwrap();
    for name in names(&fixture("granite-3-tiny")) {
        fs::copy(fixture("granite-3-tiny").join(&name), source.join(&name)).unwrap();
    }
    // The last value of the data is not a number, which is noticed only when it is read.
    let path = source.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let len = bytes.len();
    bytes[len - 2..].copy_from_slice(&[0xc0, 0x7f]);
    fs::write(&path, bytes).unwrap();
    let (code, _, stderr) = run(&source, &home.path().join("packed"), &QUICK);
    assert_eq!((code, stderr.lines().count()), (65, 1), "{stderr}");
    assert!(stderr.contains("not a finite number"), "{stderr}");
    assert_eq!(names(home.path()), ["source"]);
}

/// Kills `quantize` at `kills` random moments, with or without an existing model, and checks what is there.
fn kill_at_random_moments(source: &Path, kills: usize) {
    let home = tempfile::tempdir().unwrap();
    let output = home.path().join("packed");
    let content = |folder: &Path| -> Vec<Vec<u8>> {
        let names = names(folder);
        names
            .iter()
            .map(|name| fs::read(folder.join(name)).unwrap())
            .collect()
    };
    // The result of a complete run, for either scheme, and its duration.
    let schemes = ["channel", "group"];
    let mut whole = Vec::new();
    let mut longest = Duration::ZERO;
    for scheme in schemes {
        let start = Instant::now();
        assert_eq!(
            run(
                source,
                &output,
                &["--granularity", scheme, "--rounding", "nearest"]
            )
            .0,
            0
        );
        longest = longest.max(start.elapsed());
        whole.push(content(&output));
        fs::remove_dir_all(&output).unwrap();
    }

    let mut random = rand_pcg::Pcg64::seed_from_u64(9);
    let (mut nothing, mut old, mut new) = (0, 0, 0);
    for kill in 0..kills {
        let which = random.next_u64() as usize % 2;
        let replaces = output.exists();
        let mut more = vec!["--granularity", schemes[which], "--rounding", "nearest"];
        more.extend(replaces.then_some("--force"));
        let before = replaces.then(|| content(&output));
        let mut process = quantize(source, &output, &more).spawn().unwrap();
        std::thread::sleep(random.random_range(Duration::ZERO..longest * 11 / 10));
        let _may_have_ended = process.kill();
        process.wait().unwrap();

        if !output.exists() {
            assert!(before.is_none(), "kill {kill} lost what was there");
            nothing += 1;
            continue;
        }
        let found = content(&output);
        if found == whole[which] {
            new += 1;
        } else {
            assert!(before.is_some_and(|before| before == found), "kill {kill}");
            old += 1;
        }
        try_load(&try_open(&output).unwrap(), Placement::Mmap).unwrap();
        if random.next_u64() % 2 == 0 {
            fs::remove_dir_all(&output).unwrap();
        }
    }
    println!(
        "{kills} kills left {nothing} times nothing, {old} times the old, {new} times the new"
    );
    // A final run cleans up after all kills.
    assert_eq!(
        run(
            source,
            &output,
            &[
                "--granularity",
                "channel",
                "--rounding",
                "nearest",
                "--force"
            ]
        )
        .0,
        0
    );
    assert!(content(&output) == whole[0]);
    assert_eq!(names(home.path()), ["packed"]);
}

#[test]
fn a_kill_leaves_nothing_or_everything() {
    kill_at_random_moments(&fixture("granite-3-tiny"), 12);
}

#[test]
#[ignore = "needs minutes: a hundred kills"]
fn a_hundred_kills_leave_nothing_or_everything() {
    kill_at_random_moments(&fixture("granite-4-dense-tiny"), 100);
}
