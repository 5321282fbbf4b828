//! Mixed traffic: whole answers, streams, clients that disconnect, malformed requests, bursts.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use reqwest::blocking::{Client, Response};
use serde_json::{Value, json};

/// A client of one service.
struct Caller {
    client: Client,
    url: String,
}

impl Caller {
    fn of(api: &str) -> Self {
        Self {
            client: Client::builder()
                .timeout(Duration::from_secs(30))
                .build()
                .expect("a client"),
            url: format!("http://{api}/v1/completions"),
        }
    }

    fn post(&self, body: &Value) -> reqwest::Result<Response> {
        self.client.post(&self.url).json(body).send()
    }

    /// A prompt of `tokens` ids, which differ from caller to caller, and a continuation of `max_tokens`.
    fn body(seed: usize, tokens: usize, max_tokens: usize, stream: bool) -> Value {
        let prompt: Vec<usize> = (0..tokens).map(|i| 1 + (seed * 31 + i * 7) % 300).collect();
        json!({
            "model": "granite-3-tiny", "prompt": prompt, "max_tokens": max_tokens,
            "temperature": 0.8, "seed": seed, "stream": stream,
        })
    }
}

/// A request that a client repeats; the number is its seed.
type Request = fn(&Caller, usize);

/// Keeps the service busy for the given time with eleven clients.
pub fn run(api: &str, time: Duration) {
    let deadline = Instant::now() + time;
    let clients: [(usize, Request); 4] = [
        (6, whole),
        (3, streamed),
        (1, left_half_way),
        (1, malformed),
    ];
    std::thread::scope(|scope| {
        for (count, request) in clients {
            for client in 0..count {
                scope.spawn(move || {
                    let caller = Caller::of(api);
                    let mut seed = client * 1000;
                    while Instant::now() < deadline {
                        request(&caller, seed);
                        seed += 1;
                        // A pause, so that the queue is sometimes full and sometimes empty.
                        std::thread::sleep(Duration::from_millis(20));
                    }
                });
            }
        }
    });
}

/// Waits for the whole answer. A refusal because of a full queue is allowed too.
fn whole(caller: &Caller, seed: usize) {
    let answer = caller
        .post(&Caller::body(seed, 8 + seed % 40, 24, false))
        .expect("an answer");
    assert!(
        matches!(answer.status().as_u16(), 200 | 429),
        "{:?}",
        answer.text()
    );
}

/// Reads a stream to its end.
fn streamed(caller: &Caller, seed: usize) {
    let answer = caller
        .post(&Caller::body(seed, 16, 48, true))
        .expect("an answer");
    if answer.status() == 200 {
        let text = answer.text().expect("a stream");
        assert!(text.trim_end().ends_with("data: [DONE]"), "{text}");
    } else {
        assert_eq!(answer.status(), 429);
    }
}

/// Reads the first line of a long stream and disconnects.
fn left_half_way(caller: &Caller, seed: usize) {
    let answer = caller
        .post(&Caller::body(seed, 4, 500, true))
        .expect("an answer");
    let mut line = String::new();
    BufReader::new(answer)
        .read_line(&mut line)
        .expect("a first line");
}

/// Sends an invalid prompt.
fn malformed(caller: &Caller, _seed: usize) {
    let answer = caller
        .post(&json!({ "model": "granite-3-tiny", "prompt": { "text": "?" } }))
        .expect("an answer");
    assert_eq!(answer.status(), 400);
}
