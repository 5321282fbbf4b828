//! Sockets: those that listen, and the connections they accept.

use std::fmt;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::config;

/// A socket that listens.
pub enum Listener {
    /// On a TCP port.
    Tcp(TcpListener),
    /// On a path.
    Unix(UnixListener),
}

/// A connection that was accepted.
pub enum Socket {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

/// Bytes in both directions, with or without TLS.
pub trait Bytes: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Bytes for T {}

/// Where clients find the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// An address and a port.
    Tcp(SocketAddr),
    /// The path of a Unix socket, written `unix:PATH`.
    Unix(PathBuf),
}

/// The most bytes of a segment (`TCP_MAXSEG`). Receivers confirm every second segment at once and a single one only after
/// 40 ms. On the loopback interface, which proxies in the same pod use, a segment has up to 64 KiB: more than the send
/// buffer, so that each filling of it waited for that, and an answer of 3 MiB took 1.5 s. The buffer holds several of
/// these, and they are longer than those of most networks.
const SEGMENT_BYTES: u32 = 8 << 10;

/// What the address of a Unix socket begins with.
const UNIX: &str = "unix:";
/// Bytes of the longest path that the address of a Unix socket has room for, without the 0 behind it.
const MOST_PATH_BYTES: usize = 107;

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix(UNIX) else {
            return config::address(text).map(Self::Tcp);
        };
        match path.len() {
            0 => Err("write unix: and a path, such as unix:/run/microgranite/api.sock".to_owned()),
            1..=MOST_PATH_BYTES => Ok(Self::Unix(path.into())),
            _ => Err(format!(
                "the path of a socket has at most {MOST_PATH_BYTES} bytes"
            )),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        // Connections inherit it.
        if let Err(error) = SockRef::from(&listener).set_tcp_mss(SEGMENT_BYTES) {
            tracing::debug!(%error, "cannot set TCP_MAXSEG");
        }
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

impl Listener {
    /// The address that it is bound to.
    ///
    /// # Errors
    /// Those of the system.
    pub fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Self::Unix(listener) => {
                let address = listener.local_addr()?;
                let path = address.as_pathname().unwrap_or(Path::new("(no path)"));
                Ok(Address::Unix(path.to_owned()))
            }
        }
    }

    /// The next connection.
    ///
    /// # Errors
    /// Those of the system.
    pub async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => {
                let (socket, _peer) = listener.accept().await?;
                Ok(Socket::Tcp(socket))
            }
            Self::Unix(listener) => {
                let (socket, _peer) = listener.accept().await?;
                Ok(Socket::Unix(socket))
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

impl Socket {
    /// Sets the size of the kernel's send buffer, and that small packets are sent at once, since tokens are small.
    pub fn configure(&self, send_buffer: usize) {
        if let Err(error) = set_socket_send_buffer_size(self, send_buffer) {
            tracing::debug!(%error, "cannot set SO_SNDBUF");
        }
        if let Self::Tcp(socket) = self
            && let Err(error) = socket.set_nodelay(true)
        {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
    }

    /// Sends a few bytes at once. The send buffer of a new connection has room for them, though the runtime does not know
    /// yet that the socket is writable.
    pub fn send_at_once(&self, bytes: &[u8]) {
        let _client_may_be_gone = send(self, bytes, SendFlags::NOSIGNAL);
    }

    /// The first byte that the client sends, which stays unread; `None` if it sends none and closes the connection.
    ///
    /// # Errors
    /// Those of the system.
    pub async fn first_byte(&self) -> io::Result<Option<u8>> {
        let peek = || {
            let mut first = [0];
            let (_, count) = recv(self, &mut first, RecvFlags::PEEK)?;
            Ok((count > 0).then_some(first[0]))
        };
        match self {
            Self::Tcp(socket) => socket.async_io(Interest::READABLE, peek).await,
            Self::Unix(socket) => socket.async_io(Interest::READABLE, peek).await,
        }
    }

    /// The socket for blocking reads, which return at once because it stays non-blocking.
    ///
    /// # Errors
    /// Those of the system.
    pub fn into_reader(self) -> io::Result<Box<dyn Read>> {
        match self {
            Self::Tcp(socket) => Ok(Box::new(socket.into_std()?)),
            Self::Unix(socket) => Ok(Box::new(socket.into_std()?)),
        }
    }

    /// The socket as bytes.
    pub fn into_bytes(self) -> Box<dyn Bytes> {
        match self {
            Self::Tcp(socket) => Box::new(socket),
            Self::Unix(socket) => Box::new(socket),
        }
    }
}
