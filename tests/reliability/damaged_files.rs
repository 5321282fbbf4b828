//! R4: model folders with damage at random places.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rand::{Rng, RngExt};
use rand_pcg::Pcg64;
use rustix::process::Signal;
use tokio::time::sleep;

use crate::arguments::Context;
use crate::client;
use crate::findings::{Findings, Problem};
use crate::load::random;
use crate::machine;
use crate::models;
use crate::server::Launch;

/// Memory of the smallest server, which is not due to its files.
const PROGRAM: u64 = 64 << 20;

pub async fn damaged_files(context: Context) -> Result<Findings, Problem> {
    let total = context.of(100, 5_000);
    let mut random = random(10);
    let (mut refused, mut served, mut wrong) = (0, 0, Vec::new());
    let (mut slowest, mut largest) = (Duration::ZERO, 0_u64);
    for number in 0..total {
        // The packed form has checksums; with floats only headers can be told from what is right.
        let (model, verify) = match number % 2 {
            0 => (models::tiny(512)?, "off"),
            _ => (models::packed(&context, 512)?, "start"),
        };
        let (file, what) = damage(&model.path, &mut random)?;
        let size: u64 = fs::read_dir(&model.path)?
            .map(|entry| Ok(entry?.metadata()?.len()))
            .sum::<Result<u64, std::io::Error>>()?;
        let began = Instant::now();
        let flags = ["--verify", verify, "--kv-cache", "1MiB", "--threads", "1"];
        let mut server = Launch::new(&context, &model.path, &flags).spawn()?;
        let mut peak = 0;
        let code = loop {
            peak = machine::memory(server.id).peak.max(peak);
            if client::status_of(server.admin, "/readyz").await == Some(200) {
                server.signal(Signal::TERM);
                break server
                    .ended()
                    .await?
                    .code()
                    .map(|code| if code == 0 { -1 } else { code });
            }
            if !server.is_alive() {
                break server.ended().await?.code();
            }
            if began.elapsed() > Duration::from_secs(30) {
                break None;
            }
            sleep(Duration::from_millis(2)).await;
        };
        slowest = slowest.max(began.elapsed());
        largest = largest.max(peak.saturating_sub(size));
        let log = server.log();
        let errors: Vec<&str> = log
            .lines()
            .filter(|line| line.starts_with("error: "))
            .collect();
        let is_data = file.ends_with(".safetensors") && what == "a bit of the data";
        match (code, &*errors) {
            // Where a record and a file differ, either may be named.
            (Some(65 | 66), [line])
                if [".json", ".safetensors"]
                    .iter()
                    .any(|end| line.contains(end)) =>
            {
                refused += 1;
            }
            // Damage that changes nothing that is read; in data only where there are checksums.
            (Some(-1), []) if !(is_data && verify == "start") => served += 1,
            // A larger context or more layers than fit.
            (Some(78), [_]) => refused += 1,
            _ => wrong.push(format!("{file}, {what}: {code:?} {log:.300}")),
        }
    }
    let mut found = Findings::default();
    found.at_least("damaged folders", total as f64, "", total as f64);
    found.at_least("refused", f64::from(refused), "", total as f64 / 3.0);
    found.shown("unharmed", f64::from(served), "");
    found.never(
        "panics, signals, several lines or damaged data",
        wrong.len(),
    );
    found.within("slowest", slowest, Duration::from_secs(5));
    found.at_most(
        "memory beside the files",
        largest as f64 / f64::from(1 << 20),
        "MiB",
        (2 * PROGRAM) as f64 / f64::from(1 << 20),
    );
    wrong
        .iter()
        .take(3)
        .for_each(|wrong| found.note(wrong.clone()));
    Ok(found)
}

/// Damages one file; returns its name and what was done.
fn damage(folder: &Path, random: &mut Pcg64) -> Result<(String, &'static str), Problem> {
    let mut files: Vec<String> = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()))
        .collect::<Result<_, std::io::Error>>()?;
    files.retain(|file| {
        !["generation_config.json", "evaluation.json"].contains(&&**file)
            && !file.starts_with("reference")
    });
    files.sort();
    let file = files[random.random_range(0..files.len())].clone();
    let path = folder.join(&file);
    let mut bytes = fs::read(&path)?;
    let is_weights = file.ends_with(".safetensors");
    let header = match is_weights {
        true => 8 + u64::from_le_bytes(bytes[..8].try_into()?) as usize,
        false => bytes.len(),
    };
    let what = match random.random_range(0..4) {
        0 => {
            bytes.truncate(random.random_range(0..bytes.len()));
            "cut off"
        }
        1 if is_weights => {
            let at = random.random_range(header..bytes.len());
            bytes[at] ^= 1 << random.random_range(0..8);
            "a bit of the data"
        }
        2 => {
            let digits: Vec<usize> = (0..header)
                .filter(|at| bytes[*at].is_ascii_digit())
                .collect();
            match digits.is_empty() {
                true => "nothing",
                false => {
                    let at = digits[random.random_range(0..digits.len())];
                    bytes[at] = b'0' + (random.next_u32() % 10) as u8;
                    "a digit"
                }
            }
        }
        _ => {
            let at = random.random_range(0..header);
            bytes[at] ^= 1 << random.random_range(0..8);
            "a bit of the header"
        }
    };
    fs::write(path, bytes)?;
    Ok((file, what))
}
