//! The report, as a table and as JSON with stable names.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::measure::{Decode, Prefill, Results, STREAM_CONTEXT};
use super::scaling::{Rate, Rates};
use crate::config::{self, ByteSize};
use crate::int8::kernels;
use crate::memory::{self, accounts::Reconciled};
use crate::model::{Forward, Granite};

/// A finished benchmark.
pub struct Report<'a> {
    name: &'a str,
    isa: &'static str,
    threads: usize,
    /// CPUs that this process may use, by quota and affinity.
    cpus: usize,
    /// Bytes in huge pages, if the system reports it.
    huge_page_bytes: Option<u64>,
    weight_bytes: u64,
    bytes_per_step: u64,
    prompt_operations: u64,
    head_operations: u64,
    kv_bytes_per_token: u64,
    /// What the process holds, if the system reports it.
    held: Option<Reconciled>,
    results: &'a Results,
}

impl<'a> Report<'a> {
    /// Combines the results with the figures of `model`.
    pub fn new(
        name: &'a str,
        model: &Granite,
        results: &'a Results,
        held: Option<Reconciled>,
    ) -> Self {
        let operations = model.operations();
        Self {
            name,
            isa: model.kernel().name(),
            threads: model.threads(),
            cpus: config::available_threads(),
            huge_page_bytes: memory::huge_pages(),
            weight_bytes: model.memory().total(),
            bytes_per_step: model.bytes_per_step(),
            prompt_operations: operations.per_row,
            head_operations: operations.per_logit_row,
            kv_bytes_per_token: (model.page_bytes() / crate::model::PAGE_TOKENS) as u64,
            held,
            results,
        }
    }

    /// Int8 operations of the prompt: every token through the layers, the last one through the head. Attention is not
    /// counted, so its time lowers the share.
    fn prefill_operations(&self, prefill: &Prefill) -> f64 {
        (self.prompt_operations * prefill.tokens as u64 + self.head_operations) as f64
    }

    fn prefill_share(&self, prefill: &Prefill) -> f64 {
        self.prefill_operations(prefill) / prefill.seconds / prefill.limits.int8
    }

    /// The minimum time of a step: the time to move the weights, states, keys and values that it needs, or to compute all
    /// products with weights, whichever is longer.
    fn roofline_seconds(&self, decode: &Decode) -> f64 {
        let operations = (self.prompt_operations + self.head_operations) as f64;
        let operations = operations * decode.streams as f64;
        (decode.bytes as f64 / decode.limits.read).max(operations / decode.limits.int8)
    }

    fn decode_share(&self, decode: &Decode) -> f64 {
        self.roofline_seconds(decode) / decode.step_seconds
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        self.name
    }

    /// The rates alone, for a comparison with other numbers of threads.
    pub fn rates(&self) -> Rates {
        let rate = |tok_s: f64, share_of_limit: f64| Rate {
            threads: self.threads,
            tok_s,
            share_of_limit,
            efficiency: 1.0,
            undisturbed: self.results.given.map(|given| given.is_undisturbed()),
        };
        let of_prefill = self.results.prefill.iter().map(|prefill| {
            let rate = rate(
                prefill.tokens as f64 / prefill.seconds,
                self.prefill_share(prefill),
            );
            ("prefill", prefill.tokens, rate)
        });
        let of_decode = self.results.decode.iter().map(|decode| {
            let rate = rate(
                decode.streams as f64 / decode.step_seconds,
                self.decode_share(decode),
            );
            ("decode", decode.streams, rate)
        });
        of_prefill.chain(of_decode).collect()
    }

    /// The results, under the names that scripts rely on.
    fn json(&self) -> Value {
        let limits = self.results.limits;
        let prefill: Vec<Value> = (self.results.prefill.iter())
            .map(|prefill| {
                json!({
                    "tokens": prefill.tokens,
                    "tok_s": prefill.tokens as f64 / prefill.seconds,
                    "seconds": prefill.seconds,
                    "time_to_first_token_ms": prefill.seconds * 1e3,
                    "tops": self.prefill_operations(prefill) / prefill.seconds / 1e12,
                    "share_of_peak": self.prefill_share(prefill),
                })
            })
            .collect();
        let decode: Vec<Value> = self
            .results
            .decode
            .iter()
            .map(|decode| {
                json!({
                    "streams": decode.streams,
                    "context": decode.context,
                    "tok_s": decode.streams as f64 / decode.step_seconds,
                    "step_ms": decode.step_seconds * 1e3,
                    "gb_s": decode.bytes as f64 / decode.step_seconds / 1e9,
                    "share_of_roofline": self.decode_share(decode),
                })
            })
            .collect();
        json!({
            "machine": {
                "isa": self.isa,
                "threads": self.threads,
                "cpus": self.cpus,
                "huge_page_bytes": self.huge_page_bytes,
                "passed_over": passed_over(),
                "read_gb_s": limits.read / 1e9,
                "int8_tops": limits.int8 / 1e12,
                "f32_tflops": limits.f32 / 1e12,
                "cpu": self.results.given,
                "undisturbed": self.results.given.map(|given| given.is_undisturbed()),
            },
            "memory": self.held.as_ref().map(|held| json!({
                "resident_bytes": held.resident(),
                "unexplained_bytes": held.unexplained,
                "components": held.components.iter().copied().collect::<BTreeMap<_, _>>(),
            })),
            "model": {
                "name": self.name,
                "weight_bytes": self.weight_bytes,
                "bytes_per_step": self.bytes_per_step,
                "kv_bytes_per_token": self.kv_bytes_per_token,
            },
            "prefill": prefill,
            "decode": decode,
        })
    }
}

impl Serialize for Report<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json().serialize(serializer)
    }
}

/// Kernels of this build that this CPU cannot run, and why.
fn passed_over() -> BTreeMap<&'static str, String> {
    let with_reason = |(name, why): (_, Option<String>)| Some((name, why?));
    kernels::survey()
        .into_iter()
        .filter_map(with_reason)
        .collect()
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = self.results.limits;
        writeln!(
            f,
            "model      {}, {:.2} GB of int8 weights",
            self.name,
            self.weight_bytes as f64 / 1e9
        )?;
        writeln!(f, "machine    {} on {} threads", self.isa, self.threads)?;
        for (name, why) in passed_over() {
            writeln!(f, "           {name} passed over: {why}")?;
        }
        if self.threads > self.cpus {
            writeln!(
                f,
                "warning    {} threads on {} CPUs (quota or affinity): they wait for each other; try --threads {}",
                self.threads, self.cpus, self.cpus
            )?;
        }
        if let Some(given) = &self.results.given {
            writeln!(f, "cpu        {given}")?;
            if !given.is_undisturbed() {
                writeln!(
                    f,
                    "warning    the machine was busy: these figures cannot be compared with others; run it again alone"
                )?;
            }
        }
        if let Some(bytes) = self.huge_page_bytes {
            writeln!(
                f,
                "pages      2 MiB for {:.0} % of the weights, the rest 4 KiB",
                (100.0 * bytes as f64 / self.weight_bytes as f64).min(100.0)
            )?;
        }
        if let Some(held) = &self.held {
            let resident = held.resident();
            let share = 100.0 * held.unexplained as f64 / resident.max(1) as f64;
            let resident = ByteSize(resident);
            writeln!(
                f,
                "memory     {resident} resident, {share:.1} % of it unexplained"
            )?;
        }
        writeln!(
            f,
            "limits     read {:.1} GB/s, int8 {:.2} TOPS, f32 {:.2} TFLOPS",
            limits.read / 1e9,
            limits.int8 / 1e12,
            limits.f32 / 1e12
        )?;
        let context = self
            .results
            .decode
            .iter()
            .map(|decode| decode.context)
            .max();
        if let Some(context) = context.filter(|context| *context != STREAM_CONTEXT) {
            writeln!(
                f,
                "context    {context} tokens before each stream's decoding"
            )?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "                  tokens/s     ms/step        GB/s      TOPS   share of the limit"
        )?;
        for prefill in &self.results.prefill {
            writeln!(
                f,
                "prefill {:>6} {:>11.1} {:>11.1} {:>11} {:>9.2} {:>9.0} % of int8 peak; then comes the first token",
                prefill.tokens,
                prefill.tokens as f64 / prefill.seconds,
                prefill.seconds * 1e3,
                "",
                self.prefill_operations(prefill) / prefill.seconds / 1e12,
                self.prefill_share(prefill) * 100.0
            )?;
        }
        for decode in &self.results.decode {
            let operations =
                (self.prompt_operations + self.head_operations) as f64 * decode.streams as f64;
            let memory_bound =
                decode.bytes as f64 / decode.limits.read > operations / decode.limits.int8;
            writeln!(
                f,
                "decode  {:>6} {:>11.1} {:>11.1} {:>11.1} {:>9.2} {:>9.0} % of {}",
                decode.streams,
                decode.streams as f64 / decode.step_seconds,
                decode.step_seconds * 1e3,
                decode.bytes as f64 / decode.step_seconds / 1e9,
                operations / decode.step_seconds / 1e12,
                self.decode_share(decode) * 100.0,
                if memory_bound {
                    "read bandwidth"
                } else {
                    "int8 peak"
                }
            )?;
        }
        Ok(())
    }
}
