//! Values as people type them in flags and variables.

use std::fmt;
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
    /// Three digits and a unit of 1024, for people.
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

/// Reads whole seconds, with or without an `s` behind them.
///
/// # Errors
/// In words for the person who typed it.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    let seconds = number.parse().map(Duration::from_secs);
    seconds.map_err(|_| "write whole seconds, such as 120 or 120s".to_owned())
}

/// Reads a number of which there has to be at least one.
///
/// # Errors
/// In words for the person who typed it.
pub fn positive(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|&number| number > 0);
    number.ok_or_else(|| "write a whole number of at least 1".to_owned())
}

/// Reads `on` or `off`.
///
/// # Errors
/// In words for the person who typed it.
pub fn on_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off".to_owned()),
    }
}

/// Reads a factor that makes nothing smaller.
///
/// # Errors
/// In words for the person who typed it.
pub fn factor(text: &str) -> Result<f64, String> {
    let factor = text.parse().ok();
    let factor = factor.filter(|factor: &f64| *factor >= 1.0 && factor.is_finite());
    factor.ok_or_else(|| "write a number of at least 1, such as 3 or 1.5".to_owned())
}

/// Threads this process may run at once: the machine's cores, less what affinity or the cgroup's quota take away. A
/// thread more would be throttled, and all others wait for it at the end of every matrix.
pub fn available_threads() -> usize {
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
        for text in ["0.99", "-3", "inf", "NaN", "", "3x"] {
            assert!(factor(text).is_err(), "{text}");
        }
        assert_eq!((on_off("on"), on_off("off")), (Ok(true), Ok(false)));
        assert!(on_off("true").is_err());
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
