//! Parsers for the values of flags and environment variables.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::num::NonZero;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes: `512MiB`, `2Gi`, `1G` or plain `1048576`. As in Kubernetes, `Ki`, `Mi`, `Gi` count in 1024 and
/// `k`, `M`, `G` in 1000; a `B` at the end changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim_start();
        let factor: u64 = match unit.strip_suffix('B').unwrap_or(unit) {
            "" => 1,
            "k" | "K" => 1000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            _ => return Err(format!("'{unit}' is no unit; write 512MiB, 2GiB or 1G")),
        };
        let number: u64 = number
            .parse()
            .map_err(|_| "write a number and a unit, such as 512MiB, 2GiB or 1G".to_owned())?;
        let bytes = number.checked_mul(factor).map(ByteSize);
        bytes.ok_or_else(|| "that is more than any machine has".to_owned())
    }
}

impl fmt::Display for ByteSize {
    /// Three digits and a binary unit, such as `1.50 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        let (value, unit) = match self.0 {
            0..0x400 => return write!(f, "{} B", self.0),
            0x400..0x10_0000 => (bytes / 1024.0, "KiB"),
            0x10_0000..0x4000_0000 => (bytes / 1024.0 / 1024.0, "MiB"),
            _ => (bytes / 1024.0 / 1024.0 / 1024.0, "GiB"),
        };
        let decimals = if value < 10.0 {
            2
        } else {
            usize::from(value < 100.0)
        };
        write!(f, "{value:.decimals$} {unit}")
    }
}

/// Reads a size from `LOW` to `HIGH` bytes.
///
/// # Errors
/// A message for the user, which says what to write.
pub fn size<const LOW: u64, const HIGH: u64>(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse()?;
    if (LOW..=HIGH).contains(&size.0) {
        return Ok(size);
    }
    let (low, high) = (ByteSize(LOW), ByteSize(HIGH));
    Err(format!("write a size from {low} to {high}"))
}

/// Reads a whole number from `LOW` to `HIGH`.
///
/// # Errors
/// A message for the user, which says what to write.
pub fn whole<const LOW: usize, const HIGH: usize>(text: &str) -> Result<usize, String> {
    let number = text.parse().ok();
    let number = number.filter(|number| (LOW..=HIGH).contains(number));
    number.ok_or_else(|| format!("write a whole number from {LOW} to {HIGH}"))
}

/// More threads than any machine has cores.
pub(crate) const MOST_THREADS: usize = 4096;
/// More tokens than any context has: a bound for arithmetic where the model's own limit is not known yet.
pub(crate) const MOST_TOKENS: usize = 1 << 24;

/// Reads a number of threads.
///
/// # Errors
/// A message for the user, which says what to write.
pub(crate) fn thread_count(text: &str) -> Result<usize, String> {
    whole::<1, MOST_THREADS>(text)
}

/// Reads a number of tokens, at least one.
///
/// # Errors
/// A message for the user, which says what to write.
pub fn tokens(text: &str) -> Result<usize, String> {
    whole::<1, MOST_TOKENS>(text)
}

/// A day, longer than any useful timeout.
const MOST_SECONDS: usize = 24 * 60 * 60;

/// Reads whole seconds, at most a day, with or without a trailing `s`.
///
/// # Errors
/// A message for the user, which says what to write.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = whole::<0, MOST_SECONDS>(text.strip_suffix('s').unwrap_or(text));
    let seconds = seconds.map(|seconds| Duration::from_secs(seconds as u64));
    seconds.map_err(|_| format!("write whole seconds up to {MOST_SECONDS}, such as 120 or 120s"))
}

/// Reads `on` or `off`, or one of the other common spellings.
///
/// # Errors
/// A message for the user, which says what to write.
pub(crate) fn on_off(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "1" | "true" | "yes" => Ok(true),
        "off" | "0" | "false" | "no" => Ok(false),
        _ => Err("write on or off".to_owned()),
    }
}

/// Reads an address to listen on, `HOST:PORT`, where the host may be a name.
///
/// # Errors
/// A message for the user, which says what to write.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    const FORM: &str =
        "write HOST:PORT, such as 127.0.0.1:8080 for this machine only or 0.0.0.0:8080 for all";
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = text.rsplit_once(':').ok_or(FORM)?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err(FORM.to_owned());
    }
    let found = text.to_socket_addrs().map(Vec::from_iter);
    let found = found.map_err(|problem| format!("no address of {host} is known: {problem}"))?;
    // `localhost` has an IPv4 and an IPv6 address; clients that use the name always try IPv4.
    let older = found.iter().find(|address| address.is_ipv4());
    let address = older.or(found.first()).copied();
    address.ok_or_else(|| format!("no address of {host} is known"))
}

/// Reads the address of an OpenTelemetry collector, and adds OTLP's path for traces if there is none.
///
/// # Errors
/// A message for the user, which says what to write.
pub(crate) fn collector(text: &str) -> Result<String, String> {
    let rest = text
        .strip_prefix("http://")
        .or(text.strip_prefix("https://"));
    let is_plain = |rest: &&str| {
        let host = rest.split('/').next().unwrap_or_default();
        !host.is_empty()
            && rest
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'#')
    };
    let rest = rest.filter(is_plain);
    let rest = rest.ok_or("write an address such as http://127.0.0.1:4318")?;
    Ok(match rest.trim_end_matches('/').contains('/') {
        true => text.to_owned(),
        false => format!("{}/v1/traces", text.trim_end_matches('/')),
    })
}

/// Reads a factor from 1 to 1000.
///
/// # Errors
/// A message for the user, which says what to write.
pub fn factor(text: &str) -> Result<f64, String> {
    let factor = text.parse().ok();
    let factor = factor.filter(|factor| (1.0..=1000.0).contains(factor));
    factor.ok_or_else(|| "write a number from 1 to 1000, such as 3 or 1.5".to_owned())
}

/// The number of compute threads: as many as `asked` for, but at most `available_threads`.
pub fn threads(asked: Option<usize>) -> usize {
    let available = available_threads();
    if let Some(asked) = asked.filter(|&asked| asked > available) {
        tracing::warn!(
            "--threads {asked}: there are {available} cores for this process, and more threads than cores make \
             everything slower; using {available}"
        );
    }
    asked.map_or(available, |asked| asked.min(available))
}

/// The number of threads this process may run at once: the machine's cores, as limited by CPU affinity and the cgroup's
/// quota. One thread more would be throttled, and all others wait for it at the end of every matrix.
pub(crate) fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_kubernetes_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("512MiB", 512 << 20),
            ("512Mi", 512 << 20),
            ("2GiB", 2 << 30),
            ("1G", 1_000_000_000),
            ("1 GB", 1_000_000_000),
            ("3k", 3000),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "GiB", "-1", "1.5G", "1T", "2gib", "99999999999G"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn factors_and_switches_are_read_or_refused() {
        assert_eq!(factor("3"), Ok(3.0));
        assert_eq!(factor("1.5"), Ok(1.5));
        for text in ["0.99", "-3", "inf", "NaN", "", "3x", "1001"] {
            assert!(factor(text).is_err(), "{text}");
        }
        for (text, expected) in [("on", true), ("1", true), ("True", true), ("yes", true)] {
            assert_eq!(on_off(text), Ok(expected), "{text}");
        }
        for (text, expected) in [
            ("off", false),
            ("0", false),
            ("FALSE", false),
            ("no", false),
        ] {
            assert_eq!(on_off(text), Ok(expected), "{text}");
        }
        for text in ["", "2", "maybe"] {
            assert!(on_off(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_path_of_a_collector_may_be_left_out() {
        for (text, url) in [
            ("http://a:4318", "http://a:4318/v1/traces"),
            ("https://a/", "https://a/v1/traces"),
            ("http://a/v1/traces", "http://a/v1/traces"),
            ("http://a/other/", "http://a/other/"),
        ] {
            assert_eq!(collector(text).as_deref(), Ok(url));
        }
        for text in [
            "",
            "a:4318",
            "grpc://a",
            "http://",
            "http:///v1",
            "http://a b",
        ] {
            assert!(collector(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_and_sizes_have_ends() {
        assert_eq!(whole::<0, 9>("9"), Ok(9));
        for text in ["10", "-1", "", "1.0", "18446744073709551616"] {
            assert!(whole::<0, 9>(text).is_err(), "{text}");
        }
        assert_eq!(size::<1024, 4096>("4KiB"), Ok(ByteSize(4096)));
        assert!(size::<1024, 4096>("0").is_err() && size::<1024, 4096>("1G").is_err());
        assert_eq!(seconds("120s"), Ok(Duration::from_secs(120)));
        assert!(seconds("18446744073709551615").is_err());
    }

    #[test]
    fn an_address_may_have_a_name() {
        for text in ["127.0.0.1:80", "[::1]:80", "localhost:80"] {
            assert_eq!(
                address(text).map(|address| address.port()),
                Ok(80),
                "{text}"
            );
        }
        for text in [
            "8080",
            ":8080",
            "localhost",
            "localhost:many",
            "localhost:99999",
            "",
        ] {
            assert!(address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_written_with_three_digits() {
        for (bytes, text) in [
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (134_515_008, "128 MiB"),
            (5 << 29, "2.50 GiB"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }
}
