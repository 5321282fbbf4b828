//! Access to the server: API keys and what each of them allows, allowed origins, and the path prefix.

mod client;
mod keys;
mod line;

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use axum::http::HeaderValue;

pub use client::{Client, Running};
pub use keys::ApiKeys;

use crate::engine::Flow;

/// Who may send requests, from which origins, and under which path prefix.
#[derive(Default)]
pub struct Access {
    /// A client needs one of these keys; with `None`, no key is needed.
    pub keys: Option<ApiKeys>,
    /// Who gets equal shares of the engine.
    pub fair_by: FairBy,
    /// Whether metrics, version and API documents are also on an admin port, so that the API's port may require a key
    /// for them.
    pub has_admin_port: bool,
    /// The prefix of every path, for proxies that do not remove it: empty, or `/prefix`.
    pub root_path: String,
    /// Whether there is no page at `/`.
    pub without_page: bool,
    /// The origins whose pages may call the API from a browser (CORS); `*` stands for all.
    pub cors_origins: Vec<HeaderValue>,
}

/// Who gets equal shares of the engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum FairBy {
    /// Clients, by their keys.
    #[default]
    Key,
    /// The end users that requests name in `user`, apart for each key.
    User,
}

/// Makes numbers of users. Its key never leaves the process, so nobody can construct two users with one number.
static USERS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

impl FairBy {
    /// Whose a generation is that `client` asks for in the name of the user with such a number, if it names one.
    pub fn flow(self, client: Option<&Client>, user: Option<u64>) -> Flow {
        let of_client = client.map_or(Flow::SHARED, Client::flow);
        match self {
            Self::Key => of_client,
            Self::User => Flow {
                id: USERS
                    .hash_one((of_client.id, user))
                    .max(Flow::SHARED.id + 1),
                ..of_client
            },
        }
    }
}

/// The number of an end user.
pub fn user_id(user: &str) -> u64 {
    USERS.hash_one(user)
}
