//! R37: an answer does not depend on what else is running.

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::arguments::Context;
use crate::client::{self, COMPLETIONS};
use crate::findings::{Findings, Problem};
use crate::load::{ids, random};
use crate::models;
use crate::server::Server;

pub async fn same_bytes(context: Context) -> Result<Findings, Problem> {
    let model = models::tiny(2048)?;
    // So little memory for pages that answers are preempted too.
    let server = Server::start(&context, &model.path, &["--kv-cache", "1MiB"]).await?;
    let mut random = random(12);
    let count = context.of(100, 1000);
    let bodies: Vec<Value> = (0..count)
        .map(|number| {
            let prompt = ids(&mut random, 1 + number * 7 % 300);
            // Greedy ones, and some that sample with a seed.
            let temperature = if number % 4 == 3 { 0.8 } else { 0.0 };
            json!({
                "prompt": prompt, "max_tokens": 8 + number * 11 % 250, "temperature": temperature, "seed": number, "logprobs": 1,
            })
        })
        .collect();
    let address = server.address;
    let ask = async move |body: Value| -> Result<Value, Problem> {
        let answer = client::post(address, COMPLETIONS, &body).await?;
        match answer.status {
            200 => Ok(answer.json()["choices"].take()),
            status => Err(format!("{status} {}", answer.text()).into()),
        }
    };
    let mut alone = Vec::new();
    for body in &bodies {
        alone.push(ask(body.clone()).await?);
    }
    let mut together = JoinSet::new();
    let mut answers = vec![Value::Null; count];
    for (number, body) in bodies.iter().cloned().enumerate() {
        together.spawn(async move { (number, ask(body).await) });
        if together.len() >= 32 || number + 1 == count {
            let least = if number + 1 == count { 0 } else { 31 };
            while together.len() > least {
                let (number, answer) = together.join_next().await.expect("one runs")?;
                answers[number] = answer?;
            }
        }
    }
    let different = alone
        .iter()
        .zip(&answers)
        .filter(|(alone, beside)| alone != beside);
    let mut found = Findings::default();
    found.never(
        &format!("different texts or log-probabilities of {count}, alone and beside 31 others"),
        different.count(),
    );
    found.shown(
        "preemptions",
        server.metrics().await?.get("preemptions_total"),
        "",
    );
    Ok(found)
}
