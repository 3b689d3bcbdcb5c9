//! Who may do what: roles, namespaces, the tokens that carry them, and the hosts
//! that the port may be called by. Pure, but for the randomness of a new token.

mod hosts;
mod tokens;

pub use hosts::Host;
pub(crate) use tokens::{Digest, Tokens, is_namespace};
pub use tokens::{NewToken, TokenError};

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Sources, jobs and searches.
    Client,
    /// Leases and what is written under them.
    Worker,
}

impl Role {
    /// As a tokens file has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Worker => "worker",
        }
    }
}

/// Where something is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Namespaces {
    /// Everywhere.
    All,
    /// In these, at least one.
    These(Vec<String>),
}

impl Namespaces {
    pub(crate) fn contain(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::These(these) => these.iter().any(|one| one == namespace),
        }
    }
}

/// What the bearer of a token may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    /// The token's name, to which the leases are bound that it takes.
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) namespaces: Namespaces,
    /// Whether the priorities it asks for count across namespaces.
    pub(crate) priority_across: bool,
}
