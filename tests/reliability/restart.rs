//! R15, R16, R17: starts, whatever happened before.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rand::RngExt;
use rustix::process::Signal;
use tokio::time::sleep;

use crate::arguments::Context;
use crate::client;
use crate::findings::{Findings, Problem};
use crate::load::{quantile, random};
use crate::models::{self, Model};
use crate::server::{Launch, free_address};

/// R15: from the start of the process until it answers, after a `kill -9`.
pub async fn restart(context: Context) -> Result<Findings, Problem> {
    let model = models::packed(&context, 4096)?;
    let (mut bound, mut ready) = (Vec::new(), Vec::new());
    for _ in 0..context.of(5, 30) {
        let began = Instant::now();
        let mut server = Launch::new(&context, &model.path, &[]).spawn()?;
        while client::status_of(server.address, "/readyz").await.is_none() {
            sleep(Duration::from_millis(1)).await;
        }
        bound.push(began.elapsed());
        server.ready().await?;
        ready.push(began.elapsed());
        server.signal(Signal::KILL);
        server.ended().await?;
    }
    let mut found = Findings::default();
    found.within(
        "the port answers",
        quantile(bound, 0.5),
        Duration::from_millis(100),
    );
    found.within("ready", quantile(ready, 0.5), Duration::from_millis(300));
    Ok(found)
}

/// R16: `quantize`, killed at random moments, leaves a whole model or none.
pub async fn killed_writing(context: Context) -> Result<Findings, Problem> {
    let floats = models::tiny(512)?;
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("packed");
    let quantize = || {
        let mut command = Command::new(&context.server);
        command
            .arg("quantize")
            .arg(&floats.path)
            .arg("--output")
            .arg(&output);
        command.args(["--rounding", "nearest", "--log", "error"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let began = Instant::now();
    quantize().status()?;
    let whole = began.elapsed();
    let verify = || {
        let mut inspect = Command::new(&context.server);
        inspect.args(["inspect", "--verify"]).arg(&output);
        inspect.stdout(Stdio::null()).stderr(Stdio::null()).status()
    };
    if !verify()?.success() {
        return Err("a whole model is not valid".into());
    }
    fs::remove_dir_all(&output)?;
    let mut random = random(9);
    let (mut nothing, mut valid, mut partial) = (0, 0, 0);
    let kills = context.of(15, 200);
    for _ in 0..kills {
        let mut process = quantize().spawn()?;
        sleep(random.random_range(Duration::ZERO..whole * 12 / 10)).await;
        let _may_have_ended = process.kill();
        process.wait()?;
        if !output.exists() {
            nothing += 1;
        } else if verify()?.success() {
            valid += 1;
            fs::remove_dir_all(&output)?;
        } else {
            partial += 1;
        }
    }
    let mut found = Findings::default();
    found.never(&format!("partial models after {kills} kills"), partial);
    found.shown("none", f64::from(nothing), "");
    found.shown("whole", f64::from(valid), "");
    // And the next run works, whatever the kills have left.
    let last = quantize().status()?.success() && verify()?.success();
    found.always("the next run works", usize::from(last), 1);
    Ok(found)
}

/// R17: settings that cannot work end in one line, before a port is bound.
pub async fn bad_settings(context: Context) -> Result<Findings, Problem> {
    let model = models::tiny(512)?;
    let all = settings(&model, model.path.parent().ok_or("a folder")?);
    let mut found = Findings::default();
    let (mut good, mut bound) = (0, 0);
    for words in &all {
        let address = free_address();
        let mut command = Command::new(&context.server);
        command.arg("serve");
        let has_own = words.iter().any(|word| {
            word.starts_with("--listen") || !word.starts_with('-') && word.contains(':')
        });
        if !has_own {
            command.args(["--listen", &address.to_string()]);
        }
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MICROGRANITE_")) {
            command.env_remove(name);
        }
        for word in words {
            match word.split_once('=') {
                Some((name, value)) if name.starts_with("MICROGRANITE_") => {
                    command.env(name, value)
                }
                _ => command.arg(word),
            };
        }
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let began = Instant::now();
        let mut was_bound = false;
        while process.try_wait()?.is_none() && began.elapsed() < Duration::from_secs(20) {
            was_bound |= client::status_of(address, "/livez").await.is_some();
            sleep(Duration::from_millis(1)).await;
        }
        let _ended_already = process.kill();
        let output = process.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        let lines = text
            .lines()
            .filter(|line| line.starts_with("error: "))
            .count();
        // The parser of the command line adds advice on further lines.
        let is_good = matches!(output.status.code(), Some(64 | 66 | 78))
            && lines == 1
            && output.stdout.is_empty();
        if is_good {
            good += 1;
        } else {
            found.note(format!(
                "{words:?} → {:?} {text:.200}",
                output.status.code()
            ));
        }
        bound += usize::from(was_bound);
    }
    found.at_least("bad settings", all.len() as f64, "", 100.0);
    found.always("refused in a line, with 64, 66 or 78", good, all.len());
    found.never("had bound a port", bound);
    Ok(found)
}

fn settings(model: &Model, folder: &Path) -> Vec<Vec<String>> {
    const NUMBERS: [&str; 15] = [
        "--threads",
        "--max-batch",
        "--max-queue",
        "--max-connections",
        "--max-prompts",
        "--max-choices",
        "--max-stops",
        "--speculation",
        "--context",
        "--max-tokens",
        "--keep-alive",
        "--drain-timeout",
        "--max-slowdown",
        "--grammar-timeout",
        "--thinking-budget",
    ];
    const SIZES: [&str; 5] = [
        "--kv-cache",
        "--state-cache",
        "--max-body",
        "--max-request-memory",
        "--max-header",
    ];
    let path = model.path.display().to_string();
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut all = Vec::new();
    for flag in NUMBERS {
        for value in ["-1", "many", "18446744073709551616", "1e3x"] {
            all.push(words(&[&path, &format!("{flag}={value}")]));
        }
    }
    for flag in SIZES {
        for value in ["1.5G", "-1", "lots", "99999999TiB"] {
            all.push(words(&[&path, &format!("{flag}={value}")]));
        }
    }
    let nowhere = folder.join("nowhere").display().to_string();
    for more in [
        &["--nonsense"][..],
        &["--listen=here"],
        &["--listen=127.0.0.1:99999"],
        &["--listen=256.0.0.1:80"],
        &["--admin-listen=x"],
        &["--host", "127.0.0.1"],
        &["--port", "8080"],
        &["--log=,=,"],
        &["--log-format=xml"],
        &["--verify=maybe"],
        &["--weights=float"],
        &["--prefix-cache=perhaps"],
        &["--generation-config=yours"],
        &["--thinking=hard"],
        &["--answer-share=2"],
        &["--cors-origin=example.org"],
        &["--root-path=no-slash"],
        &["--served-model-name=a,,b"],
        &["--kv-cache=9999GiB"],
        &["--kv-cache=10"],
        &["--context=513"],
        &["--max-slowdown=0.5"],
        &["--chat-template", &nowhere],
        &["--api-key-file", &nowhere],
        &["another-model"],
        &["--threads=0"],
        &["--max-batch=0"],
        &["--max-connections=0"],
        &["--max-body=0"],
        &["MICROGRANITE_TREADS=2"],
        &["MICROGRANITE_THREADS=0"],
        &["MICROGRANITE_MAX_QUEUE=-3"],
        &["MICROGRANITE_STRICT=perhaps"],
        &["MICROGRANITE_KV_CACHE=much"],
    ] {
        all.push([words(&[&path]), words(more)].concat());
    }
    all.push(words(&[&nowhere]));
    all.push(words(&["hf:nonsense"]));
    all.push(words(&["oci://"]));
    all
}
