//! Tests of the binary with few file descriptors: it serves as many connections as they allow, and answers the next one
//! with 503.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::process::tiny;

/// The binary under `ulimit -n` with these arguments, and its address.
struct Limited(Child, String);

impl Drop for Limited {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
    }
}

fn serve(ulimit: &str, max_connections: usize) -> Limited {
    let binary = env!("CARGO_BIN_EXE_microgranite");
    let (model, log) = (tiny(), "--log error --listen 127.0.0.1:0");
    let serve =
        format!("exec {binary} serve {log} --model {model} --max-connections {max_connections}");
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{ulimit} && {serve}")]);
    let mut process = shell.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let ready = lines.next().unwrap().unwrap();
    let (_, address) = ready.rsplit_once("//").unwrap();
    Limited(process, address.to_owned())
}

/// The beginning of the status line of the response on a new connection. It must arrive at once.
fn ask(server: &Limited) -> ([u8; 12], TcpStream) {
    let mut socket = TcpStream::connect(&server.1).unwrap();
    let limit = Some(Duration::from_secs(5));
    socket.set_read_timeout(limit).unwrap();
    socket.write_all(b"GET /livez HTTP/1.1\r\n\r\n").unwrap();
    let mut status = [0; 12];
    socket.read_exact(&mut status).expect("an answer at once");
    (status, socket)
}

/// Opens connections until one is refused, and returns how many were not.
fn connections(server: &Limited, most: usize) -> usize {
    let mut open = Vec::new();
    for _ in 0..=most {
        let (status, socket) = ask(server);
        if &status == b"HTTP/1.1 503" {
            break;
        }
        assert_eq!(&status, b"HTTP/1.1 200");
        open.push(socket);
    }
    open.len()
}

#[test]
fn the_limit_on_descriptors_is_raised_to_what_the_connections_need() {
    let server = serve("ulimit -Sn 100", 200);
    assert_eq!(connections(&server, 250), 200);
}

#[test]
fn without_descriptors_connections_are_fewer_and_the_next_is_refused_at_once() {
    let server = serve("ulimit -n 300", 1024);
    let count = connections(&server, 300);
    assert!((20..300).contains(&count), "{count}");
}

#[test]
fn a_process_that_runs_out_of_descriptors_refuses_the_next_at_once_and_recovers() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let server = serve("true", 1024);
    let few = Rlimit {
        current: Some(40),
        maximum: Some(40),
    };
    let pid = Pid::from_child(&server.0);
    prlimit(Some(pid), Resource::Nofile, few).unwrap();
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..60 {
        let (status, socket) = ask(&server);
        match &status {
            b"HTTP/1.1 200" => open.push(socket),
            status => {
                assert_eq!(status, b"HTTP/1.1 503");
                refused += 1;
            }
        }
    }
    assert!(refused >= 20, "{refused}");
    drop(open);
    let start = Instant::now();
    while &ask(&server).0 != b"HTTP/1.1 200" {
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "there is room again"
        );
    }
}
