//! The table of checks.

use futures_util::future::LocalBoxFuture;

use crate::arguments::Context;
use crate::findings::{Findings, Problem};
use crate::{
    access, bad_inputs, covered, damaged_files, disconnect, drain, egress, fairness, idle, memory,
    observability, overload, proxies, raw_http, restart, same_bytes, slow_clients, soak, supply,
    text,
};

/// One check.
pub struct Check {
    pub number: &'static str,
    pub name: &'static str,
    /// What it promises, for `--list`.
    pub promise: &'static str,
    pub run: fn(Context) -> LocalBoxFuture<'static, Result<Findings, Problem>>,
}

macro_rules! checks {
    ($($number:literal $name:literal $promise:literal => $run:expr,)+) => {
        &[$(Check {
            number: $number,
            name: $name,
            promise: $promise,
            run: |context| {
                let run = $run;
                Box::pin(run(context))
            },
        },)+]
    };
}

/// Every check, in the order in which they run.
pub const CHECKS: &[Check] = checks![
    "R1" "bad inputs" "thousands of damaged requests: no server error, no dropped connection, nothing leaked" => bad_inputs::bad_inputs,
    "R2" "raw HTTP" "bytes that are hardly HTTP: no crash, little memory, probes in time" => raw_http::raw_http,
    "R3" "fuzz targets" "every parser of outside bytes under libFuzzer" => |_| covered::elsewhere("fuzz/run.sh"),
    "R4" "damaged files" "damaged model folders are refused in one line, or harmless" => damaged_files::damaged_files,
    "R5" "changed weights" "weights that change while they are served are noticed" => covered::changed_weights,
    "R6" "overload" "at 10 times the capacity: goodput, bounded waiting, quick refusals" => overload::overload,
    "R7" "head of line" "short prompts beside the longest ones" => overload::head_of_line,
    "R8" "probes" "probes and metrics under overload" => overload::probes,
    "R9" "disconnect" "a client that leaves frees its place" => disconnect::disconnect,
    "R10" "clients that never read" "their places come back, and others do not notice" => slow_clients::never_read,
    "R11" "slow requests" "clients that send a byte now and then" => slow_clients::slow_requests,
    "R12" "idle connections" "thousands of idle connections" => idle::idle,
    "R13" "drain" "SIGTERM loses no answer" => drain::drain,
    "R14" "rolling restart" "two servers behind a proxy are replaced in turn" => proxies::rolling_restart,
    "R15" "restart" "from kill -9 to ready" => restart::restart,
    "R16" "killed while writing" "a packed model is whole or absent" => restart::killed_writing,
    "R17" "bad settings" "refused in one line before a port is bound" => restart::bad_settings,
    "R18" "soak" "mixed traffic leaves nothing behind" => soak::soak,
    "R19" "memory limit" "no kill with what the server says it needs; no start with less" => memory::memory_limit,
    "R20" "memory bound" "every place with the longest context" => memory::memory_bound,
    "R21" "processor limit" "threads follow quota and affinity" => memory::processors,
    "R22" "keys" "only the key opens, in constant time, and it is shown nowhere" => access::keys,
    "R23" "routes" "all but the probes need a key" => access::routes,
    "R24" "sizes" "what is too large costs little" => bad_inputs::sizes,
    "R25" "parameter limits" "values out of range are refused by name" => bad_inputs::parameter_limits,
    "R26" "tokenizing" "time in proportion to the length of the text" => text::tokenizing,
    "R27" "templates" "endless templates end; no special token out of a user's text" => text::templates,
    "R28" "egress and paths" "no connection opened, no file that a request names" => egress::egress,
    "R29" "smuggling" "one request, one answer, through every proxy" => proxies::smuggling,
    "R30" "series" "the number of series is constant" => observability::series,
    "R31" "log lines" "no field forges a line" => observability::log_lines,
    "R32" "supply chain" "licences, sources and bans" => supply::supply_chain,
    "R33" "container" "not root, read-only, no capabilities" => |_| covered::elsewhere("tests/deploy/container.sh"),
    "R34" "manifests" "strict schemas of eight releases" => |_| covered::elsewhere("tests/deploy/validate.sh"),
    "R35" "interleavings" "queue, cancellation, preemption and pages in random orders" => |_| covered::elsewhere("cargo test --release --manifest-path tests/interleavings/Cargo.toml, and --test scheduler"),
    "R36" "faults" "stalls, panics, numbers that are none, refused memory" => covered::faults,
    "R37" "same bytes" "answers do not depend on their neighbours" => same_bytes::same_bytes,
    "R38" "fairness" "a client that floods the server does not hold up the others" => fairness::fairness,
    "R39" "explained memory" "the parts that are counted explain what is resident" => memory::explained,
];
