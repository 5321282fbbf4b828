//! R26, R27: texts and templates made to take long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::arguments::Context;
use crate::client::{self, post};
use crate::findings::{Findings, Problem};
use crate::load::quantile;
use crate::models;
use crate::overload::ask_blocking;
use crate::server::{Launch, Server};

/// Texts that have made tokenizers slow.
const ALPHABETS: [(&str, &str); 12] = [
    ("a", "a"),
    ("^", "^"),
    ("_", "_"),
    ("spaces", " "),
    ("line ends", "\n"),
    ("digits", "0123456789"),
    ("ab ", "ab "),
    ("apostrophes", "'s"),
    ("emoji", "\u{1f469}\u{200d}\u{1f4bb}"),
    ("accents", "e\u{301}"),
    ("Han", "\u{6f22}"),
    ("NUL", "\u{0}"),
];

/// R26: the time of a text is in proportion to its length.
pub async fn tokenizing(context: Context) -> Result<Findings, Problem> {
    let model = models::tiny(512)?;
    let flags = ["--max-body", "8MiB", "--max-request-memory", "1GiB"];
    let server = Server::start(&context, &model.path, &flags).await?;
    let is_over = Arc::new(AtomicBool::new(false));
    // On the port that the texts arrive at.
    let (over, api) = (Arc::clone(&is_over), server.address);
    let probe = std::thread::spawn(move || {
        let mut times = Vec::new();
        while !over.load(Relaxed) {
            let began = Instant::now();
            let is_good = ask_blocking(api, "/livez").is_ok();
            times.push(if is_good {
                began.elapsed()
            } else {
                Duration::from_secs(1)
            });
            std::thread::sleep(Duration::from_millis(2));
        }
        times
    });
    let mut found = Findings::default();
    let (mut growth, mut slowest, mut worst) = (0.0_f64, Duration::ZERO, "");
    for (name, alphabet) in ALPHABETS {
        let mut times = Vec::new();
        for bytes in [512 << 10, 1 << 20] {
            let text = alphabet.repeat(bytes / alphabet.len());
            let body = json!({"prompt": text, "add_special_tokens": false});
            let mut tries = Vec::new();
            for _ in 0..context.of(2, 5) {
                let answer = post(server.address, "/tokenize", &body).await?;
                if answer.status != 200 {
                    return Err(format!("{name}: {}", answer.text()).into());
                }
                tries.push(answer.first);
            }
            // The shortest is nearest to what the text itself takes.
            times.push(tries.into_iter().min().unwrap_or_default());
        }
        growth = growth.max(times[1].as_secs_f64() / times[0].as_secs_f64());
        if times[1] > slowest {
            (slowest, worst) = (times[1], name);
        }
    }
    is_over.store(true, Relaxed);
    let stalls = probe.join().expect("it does not panic");
    found.timed_at_most("time of 1 MiB", growth, "× that of half of it", 2.3);
    // A token for each byte, in this vocabulary, makes an answer of several MiB.
    found.within(
        &format!("slowest MiB ({worst})"),
        slowest,
        Duration::from_millis(2500),
    );
    found.within(
        "others wait, p99",
        quantile(stalls, 0.99),
        Duration::from_millis(10),
    );
    Ok(found)
}

/// R27: templates that never end, and special tokens in what users write.
pub async fn templates(context: Context) -> Result<Findings, Problem> {
    const ENDLESS: [&str; 6] = [
        "{% for a in range(100000000) %}{% endfor %}x",
        "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'x' * 100000000000 }}",
        "{% set ns = namespace(s='x') %}{% for a in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(l=[]) %}{% for a in range(10000000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
    ];
    let model = models::tiny(512)?;
    let messages = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1});
    let mut found = Findings::default();
    let (mut refused, mut slowest) = (0, Duration::ZERO);
    for template in ENDLESS {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(&file, template)?;
        let path = file.path().display().to_string();
        let mut server = Launch::new(&context, &model.path, &["--chat-template", &path]).spawn()?;
        // A template may also be refused at the start, where it is tried.
        if let Err(problem) = server.ready().await {
            let is_told = problem.to_string().contains("template");
            refused += usize::from(is_told);
            if !is_told {
                found.note(format!("{template}: {problem}"));
            }
            continue;
        }
        let began = Instant::now();
        let answer = post(server.address, "/v1/chat/completions", &messages).await?;
        slowest = slowest.max(began.elapsed());
        let is_alive = client::status_of(server.address, "/readyz").await == Some(200);
        if answer.status == 400 && is_alive {
            refused += 1;
        } else {
            found.note(format!(
                "{template} → {} {:.100}",
                answer.status,
                answer.text()
            ));
        }
    }
    found.always("endless templates refused", refused, ENDLESS.len());
    found.within("slowest", slowest, Duration::from_millis(1000));

    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(
        &file,
        "{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>{% endfor %}",
    )?;
    let path = file.path().display().to_string();
    let server = Server::start(&context, &model.path, &["--chat-template", &path]).await?;
    let special: Vec<(u64, String)> = special_tokens(&model.path.join("tokenizer.json"))?;
    let ids = async |content: &str| -> Result<Vec<u64>, Problem> {
        let body = json!({"messages": [{"role": "user", "content": content}], "add_generation_prompt": false});
        let answer = post(server.address, "/tokenize", &body).await?.json();
        let tokens = answer["tokens"].as_array().ok_or("tokens")?;
        Ok(tokens.iter().filter_map(Value::as_u64).collect())
    };
    let count = |ids: &[u64]| {
        ids.iter()
            .filter(|id| special.iter().any(|(special, _)| special == *id))
            .count()
    };
    let plain = count(&ids("hello").await?);
    let mut smuggled = 0;
    for (_, text) in &special {
        for content in [
            text.clone(),
            format!("a{text}b"),
            format!("{text}{text}"),
            format!("</s>{text}\n"),
        ] {
            smuggled += count(&ids(&content).await?) - plain;
        }
    }
    found.at_least("special tokens tried", special.len() as f64, "", 4.0);
    found.never("special ids out of what a user wrote", smuggled);
    Ok(found)
}

fn special_tokens(file: &std::path::Path) -> Result<Vec<(u64, String)>, Problem> {
    let tokenizer: Value = serde_json::from_slice(&std::fs::read(file)?)?;
    let added = tokenizer["added_tokens"].as_array().ok_or("added tokens")?;
    let special = added.iter().filter(|token| token["special"] == true);
    let pair = |token: &Value| Some((token["id"].as_u64()?, token["content"].as_str()?.to_owned()));
    Ok(special.filter_map(pair).collect())
}
