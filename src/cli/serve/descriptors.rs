//! File descriptors: every connection needs one, and the usual soft limit is no higher than the default number of
//! connections.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Connections to the admin port: probes, collectors and people.
pub const ADMIN_CONNECTIONS: usize = 64;
/// Descriptors for everything else: ports, log, model files, timers, libraries, and connections that are being refused.
const OWN: u64 = 160;

/// Raises the soft limit on file descriptors to what `wanted` connections need, as far as the hard limit allows.
/// Returns the number of connections with descriptors: `wanted`, or fewer with a warning.
pub fn connections(wanted: usize) -> usize {
    let beside = OWN + ADMIN_CONNECTIONS as u64;
    let needed = beside.saturating_add(wanted as u64);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let (possible, raise) = limit(current, maximum, needed);
    if let Some(limit) = raise {
        let limit = Rlimit {
            current: Some(limit),
            maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "cannot raise the limit on file descriptors");
            return clamp(wanted, current.unwrap_or(u64::MAX), beside);
        }
    }
    clamp(wanted, possible, beside)
}

/// The resulting limit, and the value to raise the soft limit to if necessary; `None` as a limit means unlimited.
fn limit(current: Option<u64>, maximum: Option<u64>, needed: u64) -> (u64, Option<u64>) {
    let (current, maximum) = (current.unwrap_or(u64::MAX), maximum.unwrap_or(u64::MAX));
    if current >= needed {
        return (current, None);
    }
    let raised = needed.min(maximum);
    (raised, (raised > current).then_some(raised))
}

fn clamp(wanted: usize, limit: u64, beside: u64) -> usize {
    let most = usize::try_from(limit.saturating_sub(beside)).unwrap_or(usize::MAX);
    // At least one connection, or there would be no point in starting.
    let connections = wanted.min(most.max(1));
    if connections < wanted {
        tracing::warn!(
            wanted,
            connections,
            limit,
            "the hard limit on file descriptors is too low for --max-connections; it is lowered"
        );
    }
    connections
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_to_what_is_needed_and_no_further() {
        assert_eq!(limit(Some(1024), Some(4096), 1248), (1248, Some(1248)));
        assert_eq!(limit(Some(1024), Some(1100), 1248), (1100, Some(1100)));
        assert_eq!(limit(Some(1024), None, 1248), (1248, Some(1248)));
        for enough in [Some(2000), None] {
            assert_eq!(limit(enough, None, 1248).1, None);
        }
        assert_eq!(limit(Some(100), Some(100), 1248), (100, None));
    }

    #[test]
    fn connections_are_as_many_as_there_are_descriptors_for() {
        assert_eq!(clamp(1024, 1248, 224), 1024);
        assert_eq!(clamp(1024, 1024, 224), 800);
        assert_eq!(clamp(1024, 100, 224), 1);
    }
}
