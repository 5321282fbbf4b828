//! Tells a service manager, such as systemd, how the service is: ready, reloading, alive, stopping (`sd_notify`).

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::interval;

use crate::http::app::App;
use crate::http::health;

/// Messages that wait at most. The manager reads them at once, unless it hangs; then the rest are dropped, because
/// nothing here may wait for it.
const WAITING: usize = 16;

/// What the service manager is told.
#[derive(Debug)]
pub enum Message {
    /// What the service does, for people.
    Status(String),
    /// Requests are answered from now on; the status.
    Ready(String),
    /// The files of keys and certificates are read again.
    Reloading,
    /// They have been.
    Reloaded,
    /// It stops; the status.
    Stopping(String),
    /// It lives.
    Alive,
    /// Nothing; answered when it has been told everything before.
    Flush(Sender<()>),
}

/// The service manager, if there is one.
#[derive(Clone)]
pub struct Manager(Option<SyncSender<Message>>);

impl Manager {
    /// The manager that the environment names (`NOTIFY_SOCKET`).
    pub fn of_environment() -> Self {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Self(None);
        }
        let (sender, messages) = sync_channel(WAITING);
        // A thread of its own, because sending waits where the manager hangs.
        let started = std::thread::Builder::new()
            .name("notify".into())
            .spawn(move || send_all(&messages));
        if let Err(error) = started {
            tracing::warn!(%error, "no thread to notify the service manager");
        }
        Self(Some(sender))
    }

    /// Tells the manager, without waiting.
    pub fn tell(&self, message: Message) {
        if let Some(messages) = &self.0
            && messages.try_send(message).is_err()
        {
            tracing::debug!("the service manager does not read");
        }
    }

    /// Waits until everything has been sent, for at most `limit`.
    pub fn flush(&self, limit: Duration) {
        let (done, is_done) = channel();
        self.tell(Message::Flush(done));
        let _no_manager = is_done.recv_timeout(limit);
    }

    /// Tells the manager that the service lives, twice in each interval that the manager demands (`WatchdogSec`), as long
    /// as `app` is not stuck. Runs on the thread of the network, so that it ends where that thread hangs.
    pub async fn keep_alive(self, app: App) {
        let Some(demanded) = sd_notify::watchdog_enabled().filter(|_| self.0.is_some()) else {
            return;
        };
        // An interval of zero would be refused.
        let mut ticks = interval((demanded / 2).max(Duration::from_millis(1)));
        loop {
            ticks.tick().await;
            if health::is_alive(&app) {
                self.tell(Message::Alive);
            }
        }
    }
}

fn send_all(messages: &Receiver<Message>) {
    for message in messages {
        let sent = match &message {
            Message::Status(status) => sd_notify::notify(&[NotifyState::Status(status)]),
            Message::Ready(status) => {
                sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)])
            }
            Message::Reloading => {
                let now = NotifyState::monotonic_usec_now();
                now.and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now]))
            }
            Message::Reloaded => sd_notify::notify(&[NotifyState::Ready]),
            Message::Stopping(status) => {
                sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status(status)])
            }
            Message::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
            Message::Flush(done) => {
                let _nobody_waits = done.send(());
                Ok(())
            }
        };
        if let Err(error) = sent {
            tracing::debug!(%error, ?message, "cannot notify the service manager");
        }
    }
}
