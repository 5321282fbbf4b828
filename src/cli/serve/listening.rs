//! Where the server listens: addresses, paths, and sockets that a service manager passes.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use rustix::fs::{FlockOperation, Mode, flock};
use rustix::net::sockopt::socket_acceptconn;
use rustix::process::umask;
use tokio::net::TcpSocket;

use crate::error::{Error, Result};
use crate::http::server::{Address, Listener};

/// The name that marks a passed socket as that of the admin port.
const ADMIN: &str = "admin";

/// A socket that listens, and its file, which is to be kept as long as the socket is used.
pub struct Open {
    /// The socket.
    pub listener: Listener,
    /// The file of a Unix socket that was bound here.
    pub file: Option<SocketFile>,
}

/// The file of a Unix socket. Dropping it removes the file, unless another server has put its own there.
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
    /// Keeps the inode in use, so that no other file gets its number.
    _held: File,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_some_and(|found| found == self.identity) {
            let _gone_already = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Listens on `address`, which `flag` gave, in the runtime that is entered. A Unix socket gets the permissions `mode`.
///
/// # Errors
/// [`Error::Config`] when the system refuses, or when another process listens there.
pub fn open(flag: &str, address: &Address, mode: SocketMode) -> Result<Open> {
    let open = match address {
        Address::Tcp(address) => open_tcp(*address),
        Address::Unix(path) => open_path(path, mode),
    };
    open.map_err(|problem| Error::Config(format!("{flag} {address}: {problem}")))
}

/// Connections that wait to be accepted, at most: as many as the runtime's own `bind` allows.
const BACKLOG: u32 = 1024;

fn open_tcp(address: SocketAddr) -> io::Result<Open> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // A restart does not wait until the last connections of the process before are forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?.into();
    Ok(Open {
        listener,
        file: None,
    })
}

fn open_path(path: &Path, mode: SocketMode) -> io::Result<Open> {
    let (listener, file) = bind_path(path, mode)?;
    let listener = PassedSocket::Unix(listener).into_listener()?;
    Ok(Open {
        listener,
        file: Some(file),
    })
}

/// The permissions of a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketMode(u32);

/// Reads permissions as `chmod` does: three octal digits, with or without a leading 0.
///
/// # Errors
/// A message for the user.
pub fn socket_mode(text: &str) -> std::result::Result<SocketMode, String> {
    // The parser of numbers takes a sign too.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit()) && text.len() >= 3;
    let mode = u32::from_str_radix(text, 8).ok();
    let mode = mode.filter(|mode| digits && *mode <= 0o777);
    mode.map(SocketMode)
        .ok_or_else(|| "write permissions in octal, such as 660 or 0600".to_owned())
}

fn bind_path(path: &Path, mode: SocketMode) -> io::Result<(UnixListener, SocketFile)> {
    // Two servers that start at once must not each take the other's socket for one that was left behind.
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let folder = File::open(folder)?;
    flock(&folder, FlockOperation::LockExclusive)?;
    remove_stale(path)?;
    // The mask and not a later change of the mode, so that nobody can connect in between. It belongs to the whole process,
    // which at this point has no thread that makes files.
    let before = umask(Mode::from_raw_mode(0o777 & !mode.0));
    let listener = UnixListener::bind(path);
    umask(before);
    let listener = listener?;
    let identity = identity(path).ok_or(io::ErrorKind::NotFound)?;
    let held = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)?;
    let file = SocketFile {
        path: std::path::absolute(path)?,
        identity,
        _held: held,
    };
    Ok((listener, file))
}

/// Removes a socket that a server has left behind, on which nobody listens any more.
fn remove_stale(path: &Path) -> io::Result<()> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(problem) => return Err(problem),
    };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::other("there is a file that is no socket"));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::other("another process listens there")),
        Err(problem) if problem.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "removing a socket on which nobody listens");
            std::fs::remove_file(path)
        }
        // Its backlog is full, or it belongs to somebody else.
        Err(problem) => Err(problem),
    }
}

/// A socket that was bound outside of any runtime.
pub enum PassedSocket {
    /// On a TCP port.
    Tcp(std::net::TcpListener),
    /// On a path.
    Unix(UnixListener),
}

impl PassedSocket {
    /// For the runtime that is entered.
    fn into_listener(self) -> io::Result<Listener> {
        match self {
            Self::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                tokio::net::TcpListener::from_std(listener).map(Listener::from)
            }
            Self::Unix(listener) => {
                listener.set_nonblocking(true)?;
                tokio::net::UnixListener::from_std(listener).map(Listener::Unix)
            }
        }
    }

    /// The same, with the error of a command. Its file belongs to the service manager.
    ///
    /// # Errors
    /// [`Error::Config`] when the runtime refuses the socket.
    pub fn open(self) -> Result<Open> {
        let listener = self.into_listener();
        let listener =
            listener.map_err(|problem| Error::Config(format!("a passed socket: {problem}")))?;
        Ok(Open {
            listener,
            file: None,
        })
    }

    /// Whether it has a TCP port.
    pub const fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }
}

/// The sockets that a service manager has passed.
#[derive(Default)]
pub struct Passed {
    /// For the API, in place of `--listen`.
    pub api: Option<PassedSocket>,
    /// For the admin port, in place of `--admin-listen`: the one with the name `admin`.
    pub admin: Option<PassedSocket>,
}

impl Passed {
    /// Takes the sockets that the environment names (`LISTEN_FDS`, `LISTEN_FDNAMES`), as systemd passes them. Must be called
    /// before there are other threads, because it changes the environment.
    ///
    /// # Errors
    /// [`Error::Config`] for a descriptor that is no stream socket that listens, and for two with the same use.
    pub fn take() -> Result<Self> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut descriptors = ListenFd::from_env();
        let mut passed = Self::default();
        for index in 0..descriptors.len() {
            let name = names.next().unwrap_or_default();
            let refused = |problem: &dyn std::fmt::Display| {
                Error::Config(format!(
                    "the passed socket {} ({name}): {problem}",
                    index + 1
                ))
            };
            let socket = take(&mut descriptors, index).map_err(|problem| refused(&problem))?;
            let place = match name {
                ADMIN => &mut passed.admin,
                _ => &mut passed.api,
            };
            if place.replace(socket).is_some() {
                let problem = "one socket is for the API, and one with the name admin for the admin port; this is one more";
                return Err(refused(&problem));
            }
        }
        Ok(passed)
    }
}

fn take(descriptors: &mut ListenFd, index: usize) -> io::Result<PassedSocket> {
    let passed = match descriptors.take_tcp_listener(index) {
        Ok(Some(listener)) => PassedSocket::Tcp(listener),
        Ok(None) | Err(_) => match descriptors.take_unix_listener(index)? {
            Some(listener) => PassedSocket::Unix(listener),
            None => return Err(io::ErrorKind::NotFound.into()),
        },
    };
    let descriptor = match &passed {
        PassedSocket::Tcp(listener) => listener.as_fd(),
        PassedSocket::Unix(listener) => listener.as_fd(),
    };
    if socket_acceptconn(descriptor)? {
        Ok(passed)
    } else {
        Err(io::Error::other(
            "it does not listen; the unit of the socket needs Accept=no",
        ))
    }
}

/// Refuses two addresses that cannot both be bound. Port 0 is any that is free.
///
/// # Errors
/// [`Error::Config`].
pub fn check_distinct(listen: &Address, admin: &Address) -> Result<()> {
    let overlap = match (listen, admin) {
        (Address::Tcp(listen), Address::Tcp(admin)) => {
            let is_every = listen.ip().is_unspecified() || admin.ip().is_unspecified();
            let overlap = listen.ip() == admin.ip() || is_every;
            listen.port() != 0 && listen.port() == admin.port() && overlap
        }
        _ => listen == admin,
    };
    if !overlap {
        return Ok(());
    }
    Err(Error::Config(format!(
        "--admin-listen {admin}: --listen {listen} takes this port already; give each its own"
    )))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn permissions_are_octal() {
        for (text, mode) in [("660", 0o660), ("0600", 0o600), ("000", 0), ("777", 0o777)] {
            assert_eq!(socket_mode(text), Ok(SocketMode(mode)), "{text}");
        }
        for text in ["", "6", "66", "668", "1777", "rw-", "+660", "-1", "0x1ff"] {
            assert!(socket_mode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_that_overlap_are_refused() {
        let check = |listen: &str, admin: &str| {
            check_distinct(&listen.parse().unwrap(), &admin.parse().unwrap()).is_ok()
        };
        assert!(check("127.0.0.1:80", "127.0.0.1:81"));
        assert!(check("127.0.0.1:0", "127.0.0.1:0"));
        assert!(check("unix:/a", "127.0.0.1:80"));
        assert!(check("unix:/a", "unix:/b"));
        assert!(!check("127.0.0.1:80", "0.0.0.0:80"));
        assert!(!check("unix:/a", "unix:/a"));
    }

    #[test]
    fn a_socket_left_behind_is_replaced_and_any_other_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let mode = SocketMode(0o640);
        let (listener, file) = bind_path(&path, mode).unwrap();
        let permissions = std::fs::metadata(&path).unwrap().permissions();
        assert_eq!(permissions.mode() & 0o777, 0o640);
        let refused = bind_path(&path, mode).err().unwrap().to_string();
        assert!(refused.contains("another process listens"), "{refused}");

        // As after a crash: nobody listens, and the file is there.
        drop(listener);
        let (_second, second_file) = bind_path(&path, mode).unwrap();
        drop(file);
        assert!(path.exists(), "it is the second one's");
        drop(second_file);
        assert!(!path.exists());

        std::fs::write(&path, "notes").unwrap();
        assert!(bind_path(&path, mode).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"notes");
    }
}
