//! Tests of Unix sockets, of sockets that a service manager passes, and of what it is told.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::PROGRAM;
use crate::process::{Running, microgranite, tiny};

const LIMIT: Duration = Duration::from_secs(60);

/// Sends a request on `stream` and returns the response.
fn exchange(mut stream: impl Read + Write) -> String {
    let body = r#"{"prompt": "x", "max_tokens": 4}"#;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
    let length = body.len();
    write!(
        stream,
        "{head}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn signal(process: &Running, name: &str) {
    let id = process.0.id().to_string();
    let sent = Command::new("kill").args([name, &id]).status().unwrap();
    assert!(sent.success());
}

/// Waits for the line that says where the service is.
fn place(process: &mut Running) -> String {
    let lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
    let ready = lines.map(Result::unwrap).next().expect("it starts");
    ready.rsplit_once(' ').unwrap().1.to_owned()
}

/// Serves with these flags and waits until the service is ready.
fn start(flags: &[&str]) -> (Running, String) {
    let mut command = microgranite(&["serve", &tiny(), "--log", "error"]);
    let mut process = Running(command.args(flags).stdout(Stdio::piped()).spawn().unwrap());
    let place = place(&mut process);
    (process, place)
}

#[test]
fn a_unix_socket_is_private_and_goes_away_with_its_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let address = format!("unix:{}", path.display());
    let flags = ["--listen", &*address, "--socket-mode", "600"];
    let (mut first, place) = start(&flags);
    assert_eq!(place, address);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let answer = exchange(UnixStream::connect(&path).unwrap());
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    // A second server does not take the socket away from the first.
    let mut command = microgranite(&["serve", &tiny(), "--log", "error"]);
    let output = command.args(flags).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert!(text.contains("another process listens there"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(exchange(UnixStream::connect(&path).unwrap()).starts_with("HTTP/1.1 200"));

    // One that was killed leaves its socket behind, and the next one replaces it.
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    assert!(path.exists());
    let (mut second, _) = start(&flags);
    assert!(exchange(UnixStream::connect(&path).unwrap()).starts_with("HTTP/1.1 200"));
    signal(&second, "-TERM");
    assert_eq!(second.0.wait().unwrap().code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn paths_that_are_no_sockets_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes");
    std::fs::write(&file, "notes").unwrap();
    let long = format!("unix:/{}", "x".repeat(107));
    let notes = format!("unix:{}", file.display());
    for (address, code, words) in [
        ("unix:", 64, "unix:/run/"),
        (&*long, 64, "at most 107 bytes"),
        ("unix:/nowhere/at/all/api.sock", 78, "/nowhere/at/all"),
        (&*notes, 78, "no socket"),
    ] {
        let mut command = microgranite(&["serve", &tiny(), "--listen", address, "--log", "error"]);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{address}: {text}");
        assert!(text.contains(words), "{address}: {text}");
        assert_eq!(text.lines().count(), 1, "{address}: {text}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"notes");
}

/// The program as a service manager starts it, with `first` as descriptor 3 and `second` as 4.
fn activated(first: OwnedFd, second: Option<OwnedFd>, names: &str) -> Command {
    let mut command = Command::new("sh");
    let count = 1 + usize::from(second.is_some());
    let script = format!(
        "exec 3<&0 4<&2 0</dev/null 2>/dev/null; export LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES={names}; exec \"$0\" \"$@\""
    );
    command.args(["-c", &script, PROGRAM, "serve", &tiny()]);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MICROGRANITE_")) {
        command.env_remove(name);
    }
    command.stdin(first).stdout(Stdio::piped());
    match second {
        Some(second) => command.stderr(second),
        None => command.stderr(Stdio::null()),
    };
    command
}

#[test]
fn passed_sockets_are_used_and_clients_may_come_before_the_server() {
    let api = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = api.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let admin = UnixListener::bind(&path).unwrap();
    let early = TcpStream::connect(address).unwrap();
    let mut command = activated(api.into(), Some(admin.into()), "api:admin");
    let mut process = Running(command.spawn().unwrap());
    assert_eq!(place(&mut process), format!("http://{address}"));
    let answer = exchange(early);
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
    let answer = exchange(TcpStream::connect(address).unwrap());
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut admin = UnixStream::connect(&path).unwrap();
    admin
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    admin.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("microgranite_requests_total"), "{answer}");
    signal(&process, "-TERM");
    assert_eq!(process.0.wait().unwrap().code(), Some(0));
    assert!(path.exists(), "the socket belongs to the manager");
}

#[test]
fn what_is_passed_must_listen() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let connected = TcpStream::connect(address).unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    for descriptor in [OwnedFd::from(connected), file.into()] {
        let status = activated(descriptor, None, "api").status().unwrap();
        assert_eq!(status.code(), Some(78));
    }
    // Two sockets for the same purpose.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = activated(listener.into(), Some(other.into()), "one:two");
    assert_eq!(command.status().unwrap().code(), Some(78));
}

/// The socket of a service manager, and what it has been told.
struct Manager {
    socket: UnixDatagram,
    told: Vec<String>,
}

impl Manager {
    fn new(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        Self {
            socket,
            told: Vec::new(),
        }
    }

    /// Waits until it is told something that contains `words`, and returns it. What comes before it counts as read.
    fn hear(&mut self, words: &str) -> String {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < LIMIT, "{words}: {:?}", self.told);
            let mut bytes = [0; 4096];
            let Ok(count) = self.socket.recv(&mut bytes) else {
                continue;
            };
            let message = String::from_utf8(bytes[..count].to_vec()).unwrap();
            self.told.push(message.clone());
            if message.contains(words) {
                return message;
            }
        }
    }
}

#[test]
fn the_service_manager_is_told_how_the_service_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify.sock");
    let mut manager = Manager::new(&path);
    let mut command = microgranite(&["serve", &tiny(), "--listen", "127.0.0.1:0"]);
    command
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "200000")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut process = Running(command.spawn().unwrap());
    manager.hear("STATUS=loading the model\n");
    let ready = manager.hear("READY=1\n");
    assert!(
        ready.contains("STATUS=serving granite-3-tiny on 127.0.0.1:"),
        "{ready}"
    );
    let is_early = |message: &String| message.contains("READY=1");
    assert_eq!(manager.told.iter().filter(|told| is_early(told)).count(), 1);
    for _ in 0..3 {
        manager.hear("WATCHDOG=1\n");
    }
    signal(&process, "-HUP");
    let reloading = manager.hear("RELOADING=1\n");
    assert!(reloading.contains("\nMONOTONIC_USEC="), "{reloading}");
    manager.hear("READY=1\n");
    signal(&process, "-TERM");
    manager.hear("STOPPING=1\n");
    assert_eq!(process.0.wait().unwrap().code(), Some(0));
}
