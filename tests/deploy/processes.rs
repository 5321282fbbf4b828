//! The programs of the live test: the service and Prometheus, each killed when its value is dropped.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::Url;
use reqwest::blocking::Client;
use serde_json::Value;

use crate::alerts;
use crate::cluster::POD;

/// A child process that is killed when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that was free a moment ago. If another program takes it before our child does, the child ends, and
/// [`wait_until_ready`] reports it.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").to_string()
}

/// Waits for a 200, at most a minute.
fn wait_until_ready(child: &mut Running, url: &str) {
    let client = Client::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Ok(Some(status)) = child.0.try_wait() {
            panic!("the program behind {url} ended with {status}");
        }
        let answer = client.get(url).timeout(Duration::from_secs(2)).send();
        match answer {
            Ok(answer) if answer.status() == 200 => return,
            _ if Instant::now() > deadline => panic!("{url} is not ready: {answer:?}"),
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// `microgranite serve` on the tiny fixture, packed, evaluated and measured so that there are an accuracy and
/// savings to show.
pub struct Service {
    _process: Running,
    _model: tempfile::TempDir,
    /// `host:port` of the API.
    pub api: String,
    /// `host:port` of probes and metrics.
    pub admin: String,
}

impl Service {
    /// Starts it with a small batch and queue, so that a handful of clients makes requests wait.
    pub fn start() -> Self {
        let (api, admin) = (free_address(), free_address());
        let folder = tempfile::tempdir().expect("a folder");
        // The name in the requests of the load.
        let model = folder.path().join("granite-3-tiny");
        let floats = crate::package_file("tests/fixtures/granite-3-tiny");
        let run = |command: &mut Command| {
            let status = command.stdout(Stdio::null()).status();
            assert!(status.expect("it starts").success(), "{command:?}");
        };
        let microgranite = crate::microgranite;
        run(microgranite()
            .arg("quantize")
            .arg(&floats)
            .arg("-o")
            .arg(&model));
        run(microgranite()
            .arg("eval")
            .arg(&model)
            .arg("--against")
            .arg(&floats)
            .args(["--tokens", "50"]));
        let savings = folder.path().join("savings.json");
        run(microgranite()
            .arg("verify-savings")
            .arg(&model)
            .arg("--against")
            .arg(&floats)
            .args(["--prompt", "32", "--steps", "4", "--tokens", "50"])
            .arg("--out")
            .arg(&savings));
        let child = crate::microgranite()
            .arg("serve")
            .arg("--model")
            .arg(model)
            .args(["--listen", &api, "--admin-listen", &admin])
            .args(["--threads", "1", "--max-batch", "4", "--max-queue", "4"])
            .args(["--kv-cache", "16MiB", "--log", "warn"])
            .arg("--savings")
            .arg(&savings)
            .args(["--metrics-aliases", "vllm"])
            .stdout(Stdio::null())
            .spawn()
            .expect("the service starts");
        let mut process = Running(child);
        wait_until_ready(&mut process, &format!("http://{admin}/readyz"));
        Self {
            _process: process,
            _model: folder,
            api,
            admin,
        }
    }

    /// The text of `GET /metrics`.
    pub fn metrics(&self) -> String {
        reqwest::blocking::get(format!("http://{}/metrics", self.admin))
            .and_then(|answer| answer.error_for_status()?.text())
            .expect("metrics")
    }
}

/// A Prometheus that scrapes one service and the metrics of the cluster every second, and evaluates the shipped rules.
pub struct Prometheus {
    _process: Running,
    _data: tempfile::TempDir,
    address: String,
}

impl Prometheus {
    pub fn start(target: &str, cluster: &str) -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let address = free_address();
        let config = data.path().join("prometheus.yml");
        std::fs::write(
            &config,
            format!(
                "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
                 rule_files: ['{}']\n\
                 scrape_configs:\n\
                 - {{job_name: microgranite, static_configs: [{{targets: ['{target}'], labels: {{{}}}}}]}}\n\
                 - {{job_name: cluster, honor_labels: true, static_configs: [{{targets: ['{cluster}']}}]}}\n",
                crate::package_file(alerts::RULES).display(),
                POD.map(|(label, value)| format!("{label}: {value}")).join(", "),
            ),
        )
        .expect("written");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                data.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn")
            .stdout(Stdio::null())
            .spawn()
            .expect("Debian's package `prometheus` is installed");
        let mut process = Running(child);
        wait_until_ready(&mut process, &format!("http://{address}/-/ready"));
        Self {
            _process: process,
            _data: data,
            address,
        }
    }

    /// `query_range` at a step of one second; the times are Unix seconds.
    ///
    /// # Errors
    /// Prometheus' error message.
    pub fn query_range(&self, query: &str, from: f64, to: f64) -> Result<Vec<Value>, String> {
        let times = [from.to_string(), to.to_string()];
        let parameters = [
            ("query", query),
            ("start", &times[0]),
            ("end", &times[1]),
            ("step", "1"),
        ];
        let answer = self.get("query_range", &parameters)?;
        let series = answer["result"].as_array().ok_or("no list of results")?;
        Ok(series.clone())
    }

    /// The values of a label among the series of a selector, as a dashboard variable lists them.
    ///
    /// # Errors
    /// Prometheus' error message.
    pub fn label_values(&self, selector: &str, label: &str) -> Result<Vec<Value>, String> {
        let answer = self.get(&format!("label/{label}/values"), &[("match[]", selector)])?;
        Ok(answer.as_array().ok_or("no list of values")?.clone())
    }

    fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let url = Url::parse_with_params(
            &format!("http://{}/api/v1/{path}", self.address),
            parameters,
        )
        .expect("a valid address");
        let mut answer: Value = reqwest::blocking::get(url)
            .and_then(reqwest::blocking::Response::json)
            .map_err(|e| e.to_string())?;
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"].take()),
            _ => Err(answer["error"].to_string()),
        }
    }
}
