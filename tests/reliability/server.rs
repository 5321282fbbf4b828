//! The server as a process.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::arguments::Context;
use crate::client;
use crate::findings::Problem;

/// Much longer than starting takes on a busy machine.
const START: Duration = Duration::from_secs(60);
/// Much longer than ending takes, except for a drain.
const END: Duration = Duration::from_secs(60);

/// A server to start.
pub struct Launch {
    program: PathBuf,
    /// A program that runs the server, with its arguments.
    wrapper: Vec<String>,
    flags: Vec<String>,
    pub address: SocketAddr,
    pub admin: SocketAddr,
}

/// A running server. It is killed when it is dropped.
pub struct Server {
    process: Child,
    pub id: u32,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    folder: TempDir,
}

/// An address that was free a moment ago.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address")
}

impl Launch {
    /// `serve` on `model`, with ports for the API and for probes.
    pub fn new(context: &Context, model: &Path, flags: &[&str]) -> Self {
        let (address, admin) = (free_address(), free_address());
        let fixed = [
            "--listen",
            &address.to_string(),
            "--admin-listen",
            &admin.to_string(),
        ];
        let fixed = fixed.iter().chain(flags).map(ToString::to_string);
        let mut all = vec!["serve".to_owned(), model.display().to_string()];
        all.extend(fixed);
        if !flags.contains(&"--log") {
            all.extend(["--log".to_owned(), "warn".to_owned()]);
        }
        Self {
            program: context.server.clone(),
            wrapper: Vec::new(),
            flags: all,
            address,
            admin,
        }
    }

    /// Takes other ports, which must be free.
    pub fn move_to(&mut self, address: SocketAddr, admin: SocketAddr) {
        for (old, new) in [(self.address, address), (self.admin, admin)] {
            let old = old.to_string();
            if let Some(flag) = self.flags.iter_mut().find(|flag| **flag == old) {
                *flag = new.to_string();
            }
        }
        (self.address, self.admin) = (address, admin);
    }

    /// Runs it with another program, such as `taskset -c 0`.
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(ToString::to_string).collect();
        self
    }

    pub fn command(&self) -> Command {
        let mut words = self.wrapper.clone();
        words.push(self.program.display().to_string());
        words.extend(self.flags.iter().cloned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MICROGRANITE_")) {
            command.env_remove(name);
        }
        command
    }

    /// Starts the process and does not wait.
    pub fn spawn(self) -> io::Result<Server> {
        let folder = tempfile::tempdir()?;
        let file = |name: &str| File::create(folder.path().join(name));
        let (stdout, stderr) = (file("stdout")?, file("stderr")?);
        let process = self
            .command()
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()?;
        let id = process.id();
        Ok(Server {
            process,
            id,
            address: self.address,
            admin: self.admin,
            folder,
        })
    }

    /// Starts the process and waits until it is ready.
    pub async fn start(self) -> Result<Server, Problem> {
        let mut server = self.spawn()?;
        server.ready().await?;
        Ok(server)
    }
}

impl Server {
    /// Starts a server on `model` and waits until it is ready.
    pub async fn start(context: &Context, model: &Path, flags: &[&str]) -> Result<Self, Problem> {
        Launch::new(context, model, flags).start().await
    }

    /// Waits until it is ready.
    pub async fn ready(&mut self) -> Result<(), Problem> {
        let began = Instant::now();
        while client::status_of(self.admin, "/readyz").await != Some(200) {
            if let Some(status) = self.process.try_wait()? {
                return Err(format!("the server ended with {status}: {}", self.log()).into());
            }
            if began.elapsed() > START {
                return Err("the server does not become ready".into());
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// What it wrote to standard error so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.folder.path().join("stderr")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What it wrote to standard output so far.
    pub fn printed(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("stdout")).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        let id = Pid::from_child(&self.process);
        let _gone_already = kill_process(id, signal);
    }

    pub fn is_alive(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Waits for its end and returns how it ended.
    pub async fn ended(&mut self) -> Result<ExitStatus, Problem> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            if began.elapsed() > END {
                return Err("the server does not end".into());
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// All metrics, by series, without the prefix.
    pub async fn metrics(&self) -> Result<Metrics, Problem> {
        let text = client::get(self.admin, "/metrics").await?.text();
        let samples = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((
                series.strip_prefix("microgranite_")?.to_owned(),
                value.parse().ok()?,
            ))
        });
        Ok(Metrics(samples.collect()))
    }

    /// Waits until `condition` holds for the metrics, and returns how long that took.
    pub async fn until(
        &self,
        what: &str,
        condition: impl Fn(&Metrics) -> bool,
    ) -> Result<Duration, Problem> {
        let began = Instant::now();
        loop {
            if condition(&self.metrics().await?) {
                return Ok(began.elapsed());
            }
            if began.elapsed() > END {
                return Err(format!("not within {} s: {what}", END.as_secs()).into());
            }
            sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone_already = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// Samples of `/metrics`.
pub struct Metrics(pub BTreeMap<String, f64>);

impl Metrics {
    /// The value of a series; a series that is missing is not a number, which no condition accepts.
    pub fn get(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or(f64::NAN)
    }

    pub fn count(&self, outcome: &str) -> f64 {
        self.get(&format!("requests_total{{outcome=\"{outcome}\"}}"))
    }
}

/// Raises this program's limit on descriptors as far as it may, for checks with thousands of connections.
pub fn allow_many_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let _as_it_is = setrlimit(Resource::Nofile, raised);
}
