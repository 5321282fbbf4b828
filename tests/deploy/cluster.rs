//! Metrics of the cluster that panels and alerts read beside our own, and a stand-in for the programs that expose them.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

/// The labels that Prometheus gives to every series of a scraped pod.
pub const OF_TARGETS: [&str; 4] = ["namespace", "job", "instance", "pod"];

/// The pod of the tests.
pub const POD: [(&str, &str); 2] = [("namespace", "serving"), ("pod", "granite-0")];

/// A metric of kube-state-metrics, of the kubelet or of Prometheus itself, with one series of the stand-in.
pub struct Foreign {
    pub name: &'static str,
    /// Besides those of [`POD`], which nodes do not have.
    labels: &'static str,
    value: f64,
    /// Whether it grows by `value` every second.
    pub is_counter: bool,
}

const fn gauge(name: &'static str, labels: &'static str, value: f64) -> Foreign {
    Foreign {
        name,
        labels,
        value,
        is_counter: false,
    }
}

const fn counter(name: &'static str, labels: &'static str, value: f64) -> Foreign {
    Foreign {
        is_counter: true,
        ..gauge(name, labels, value)
    }
}

const SERVER: &str = r#"container="server""#;

/// Every one that we read. The names and labels are those of kube-state-metrics 2 and of the kubelet.
pub const FOREIGN: &[Foreign] = &[
    gauge(
        "kube_node_status_allocatable",
        r#"node="node-0",resource="memory",unit="byte""#,
        64e9,
    ),
    gauge(
        "kube_pod_container_resource_limits",
        r#"container="server",resource="memory",unit="byte""#,
        1e9,
    ),
    gauge(
        "kube_pod_container_resource_limits",
        r#"container="server",resource="cpu",unit="core""#,
        2.0,
    ),
    gauge(
        "kube_pod_container_status_last_terminated_reason",
        r#"container="server",reason="OOMKilled""#,
        0.0,
    ),
    counter("kube_pod_container_status_restarts_total", SERVER, 0.0),
    gauge("container_memory_working_set_bytes", SERVER, 7e8),
    counter("container_cpu_usage_seconds_total", SERVER, 1.5),
    counter("container_cpu_cfs_periods_total", SERVER, 10.0),
    counter("container_cpu_cfs_throttled_periods_total", SERVER, 0.5),
];

/// Prometheus' own metric of alerts that fire.
pub const ALERTS: &str = "ALERTS";

/// Finds a metric by its name.
pub fn find(name: &str) -> Option<&'static Foreign> {
    FOREIGN.iter().find(|foreign| foreign.name == name)
}

/// Serves the metrics on a free port as long as the test runs; returns `host:port`.
pub fn serve() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    let started = Instant::now();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A scrape that breaks off is tried again by Prometheus a second later.
            let _ = answer(stream, started.elapsed().as_secs_f64());
        }
    });
    address
}

fn answer(mut stream: TcpStream, seconds: f64) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while lines
        .next()
        .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
    {}
    let body = exposition(seconds);
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn exposition(seconds: f64) -> String {
    let series = |foreign: &Foreign| {
        let of_pod: String = match foreign.name.starts_with("kube_node_") {
            true => String::new(),
            false => POD
                .map(|(label, value)| format!(",{label}=\"{value}\""))
                .concat(),
        };
        let value = match foreign.is_counter {
            true => 100.0 + foreign.value * seconds,
            false => foreign.value,
        };
        format!("{}{{{}{of_pod}}} {value}\n", foreign.name, foreign.labels)
    };
    FOREIGN.iter().map(series).collect()
}
