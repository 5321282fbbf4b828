//! Standard error: log lines, panics and final messages, none of which may block or fail a request.
//!
//! A pipe may have lost its reader, or have one that does not read, and a disk may be full. So each line goes into a
//! bounded queue, and one thread writes it. Lines that do not fit, or cannot be written, are dropped and counted.
//! `tracing-appender` does nearly the same, but prints to standard output when the queue is full at the end, which
//! panics where standard output is broken too, and does not count failed writes.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::Write;
use std::str::FromStr;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Capacity of the queue in lines: minutes of requests at full load, in about a megabyte.
const QUEUED_LINES: usize = 4096;
/// Pause between attempts to put a message into a full queue.
const PAUSE: Duration = Duration::from_millis(5);

/// The format of log lines. They go to standard error; the output of a command goes to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Plain text.
    Text,
    /// One JSON object per line, for log collectors; bytes from clients cannot forge a line.
    Json,
}

/// The queue in front of standard error; created by the first line.
static STDERR: OnceLock<Queue> = OnceLock::new();
/// The number of dropped lines. There is one standard error, so there is one count, whichever registry shows it.
static LOST: LazyLock<IntCounter> = LazyLock::new(|| {
    let name = "microgranite_log_lines_dropped_total";
    let help = "Log lines that could not be written.";
    IntCounter::new(name, help).expect("the name is valid")
});

/// The counter of dropped lines: `log_lines_dropped_total`.
pub(crate) fn lost_lines() -> IntCounter {
    LOST.clone()
}

/// The log filter: `info`, `debug`, `microgranite=debug,hyper=info`, …
#[derive(Debug, Clone)]
pub struct Filter(String);

impl Filter {
    /// Warnings and errors.
    pub fn warnings() -> Self {
        Self("warn".to_owned())
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // An unknown level would be taken for a target, and everything else would be silent.
        let directives = text.split(',').map(str::trim);
        let mut words = directives.filter(|word| !word.contains(['=', '[', ':']));
        let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
        if let Some(word) = words.find(|word| !word.is_empty() && !is_level(word)) {
            return Err(format!(
                "'{word}' is no level; write off, error, warn, info, debug or trace, or a target with one: hyper=info"
            ));
        }
        match EnvFilter::try_new(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(problem) => Err(problem.to_string()),
        }
    }
}

/// Starts logging, with `filter`; panics are logged too.
pub(crate) fn init(format: LogFormat, filter: &Filter) {
    let filter = EnvFilter::new(&filter.0);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Stderr)
        // The formatter would write its own errors to standard error directly, which panics where that is broken.
        .log_internal_errors(false);
    // A second call, as in tests, has no effect.
    let _already_set = match format {
        LogFormat::Text => builder
            .with_ansi(has_colors(&std::io::stderr()))
            .with_target(false)
            .try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    log_panics();
}

/// Whether text for `stream` may have colors: on a terminal that can show them, unless `NO_COLOR` is set;
/// `CLICOLOR_FORCE` asks for them everywhere.
pub fn has_colors(stream: &impl anstream::stream::RawStream) -> bool {
    anstream::AutoStream::choice(stream) != anstream::ColorChoice::Never
}

/// Logs panics as lines. The standard library's hook writes to standard error and blocks.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let location = panic.location().map(ToString::to_string);
        let backtrace = Backtrace::capture();
        let captured = backtrace.status() == BacktraceStatus::Captured;
        tracing::error!(
            thread = thread.name(),
            location,
            backtrace = captured.then(|| tracing::field::display(&backtrace)),
            "panic: {}",
            message(panic.payload())
        );
    }));
}

/// The message of a panic.
pub fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

/// Writes text to standard error, after the queued log lines.
pub fn write_stderr(text: &str) {
    stderr().put(text.as_bytes());
}

fn stderr() -> &'static Queue {
    STDERR.get_or_init(|| Queue::new(std::io::stderr()))
}

/// Waits until everything queued before is written, for at most `limit`: there may be no reader.
pub fn flush(limit: Duration) {
    if let Some(queue) = STDERR.get() {
        queue.flush(limit);
    }
}

/// An entry of the queue.
enum Message {
    Text(Vec<u8>),
    /// Answered when everything before it has been written or dropped.
    Flush(Sender<()>),
}

/// A bounded queue, emptied by a thread that writes.
struct Queue(SyncSender<Message>);

impl Queue {
    fn new(writer: impl Write + Send + 'static) -> Self {
        let (sender, receiver) = sync_channel(QUEUED_LINES);
        // Without the thread every line is dropped, and counted.
        let _no_thread = std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_all(&receiver, writer));
        Self(sender)
    }

    fn put(&self, text: &[u8]) {
        if self.0.try_send(Message::Text(text.to_vec())).is_err() {
            LOST.inc();
        }
    }

    fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let (done, is_done) = channel();
        let mut message = Message::Flush(done);
        while let Err(TrySendError::Full(unsent)) = self.0.try_send(message) {
            if Instant::now() > deadline {
                return;
            }
            message = unsent;
            std::thread::sleep(PAUSE);
        }
        let _too_late = is_done.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

/// Writes all messages, even after failures.
fn write_all(messages: &Receiver<Message>, mut writer: impl Write) {
    for message in messages {
        match message {
            Message::Text(text) => {
                if writer.write_all(&text).is_err() {
                    LOST.inc();
                }
            }
            Message::Flush(done) => {
                let _nobody_waits = done.send(());
            }
        }
    }
}

/// The writer that the log's formatter uses.
struct Stderr;

impl MakeWriter<'_> for Stderr {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

impl Write for Stderr {
    /// The formatter writes a line in one piece.
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        stderr().put(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A writer that fails, or blocks for ever, when the text says so.
    #[derive(Clone, Default)]
    struct Odd(Arc<Mutex<Vec<u8>>>);

    impl Write for Odd {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            match text {
                b"fail" => return Err(io::ErrorKind::BrokenPipe.into()),
                b"stall" => std::thread::park(),
                _ => self.0.lock().unwrap().extend(text),
            }
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_failed_write_loses_one_line_and_a_writer_that_stalls_holds_nobody_up() {
        let odd = Odd::default();
        let queue = Queue::new(odd.clone());
        let lost = LOST.get();
        for text in ["a", "fail", "b"] {
            queue.put(text.as_bytes());
        }
        queue.flush(Duration::from_secs(60));
        assert_eq!(*odd.0.lock().unwrap(), b"ab");
        assert_eq!(LOST.get(), lost + 1);

        queue.put(b"stall");
        for _ in 0..QUEUED_LINES + 100 {
            queue.put(b"c");
        }
        assert!(LOST.get() >= lost + 100, "what finds no place is counted");
        let start = Instant::now();
        queue.flush(Duration::from_millis(50));
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}
