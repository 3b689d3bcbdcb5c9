//! How Weir speaks to embedding servers, and how it judges what they answer: one
//! contract, one sorted error, and a judge that experiments.

mod config;
pub mod judge;
pub mod pace;
mod profile;
mod provider;
mod redact;

use std::time::Duration;

pub use self::config::EmbedderConfig;
use self::judge::Hint;
pub use self::profile::{
    Address, EmbedderKind, Encoding, Fields, HeaderSource, ModelsFile, Profile, Role, RoleProfile,
    document_prompt, model_name,
};
pub use self::provider::build;
use async_trait::async_trait;

/// Turns texts into vectors with one model.
#[async_trait]
pub trait Embedder: Send + Sync + 'static {
    /// Returns one vector for each text, in the order of the texts, of the
    /// dimension that the first probe found.
    async fn embed(&self, texts: &[&str]) -> Result<Vec<Embedding>, EmbedError>;

    /// Embeds one harmless text of about so many bytes, the shortest for 0, and
    /// asks the server for its limits where it can tell them: shows at start
    /// that the embedder works, and after an outage that it works again. What a
    /// server does not tell of how it is asked is found out by it, so one probe
    /// must come before the first texts.
    async fn probe(&self, bytes: usize) -> Result<Probe, EmbedError>;
}

/// The vector of a text, every number finite and not all of them zero; or why
/// that which the embedder returned cannot be used.
pub type Embedding = Result<Vec<f32>, String>;

/// What a probe found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Numbers in each vector of the model.
    pub dimension: usize,
    /// What one call may hold.
    pub limits: Limits,
}

/// What the server says it takes; `None` where it says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Texts in one call.
    pub batch_size: Option<usize>,
    /// Tokens of all texts of one call together.
    pub batch_tokens: Option<usize>,
    /// Tokens of one text, with those that frame it.
    pub text_tokens: Option<usize>,
    /// Calls at the same time.
    pub concurrent_calls: Option<usize>,
}

/// Why a call failed, by what the embedder says. That is a hint and no proof:
/// what follows from it is judged by what the embedder does with other texts.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EmbedError {
    /// A text is longer than the model takes.
    #[error("{reason}")]
    TooLong {
        /// What the embedder said, for a person.
        reason: String,
        /// The place of that text among those sent, where it was named.
        culprit: Option<usize>,
    },
    /// The texts together are more than the server takes in one call.
    #[error("{reason}")]
    TooMany {
        /// What the embedder said, for a person.
        reason: String,
    },
    /// Something is wrong with the call, perhaps with one of its texts.
    #[error("{reason}")]
    Input {
        /// What the embedder said, for a person.
        reason: String,
        /// The place of that text among those sent, where it was named.
        culprit: Option<usize>,
    },
    /// The embedder works and has too much to do, or a quota is used up.
    #[error("{reason}")]
    Overloaded {
        /// What the embedder said, for a person.
        reason: String,
        /// How long it asked to be left alone, where it said so.
        retry_after: Option<Duration>,
    },
    /// The embedder can embed nothing: unreachable, unauthorised, without the
    /// model.
    #[error("{reason}")]
    Embedder {
        /// What the embedder said, for a person.
        reason: String,
        /// How long it asked to be left alone, where it said so.
        retry_after: Option<Duration>,
    },
    /// The call took longer than allowed.
    #[error("{reason}")]
    Timeout {
        /// What happened, for a person.
        reason: String,
    },
    /// The connection broke, or the answer did: the embedder may have died,
    /// perhaps of a text.
    #[error("{reason}")]
    Broken {
        /// What happened, for a person.
        reason: String,
    },
    /// Anything else.
    #[error("{reason}")]
    Transient {
        /// What happened, for a person.
        reason: String,
    },
}

impl EmbedError {
    /// Returns what the failure most likely means.
    pub fn hint(&self) -> Hint {
        match self {
            Self::TooLong { culprit, .. } => Hint::TooLong(*culprit),
            Self::TooMany { .. } => Hint::TooMuch,
            Self::Input { culprit, .. } => culprit.map_or(Hint::Unknown, Hint::Text),
            Self::Overloaded { .. } => Hint::Busy,
            Self::Embedder { .. } => Hint::Down,
            Self::Timeout { .. } | Self::Broken { .. } => Hint::Broken,
            Self::Transient { .. } => Hint::Unknown,
        }
    }

    /// Returns how long the embedder asked to be left alone, where it did.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after, .. } | Self::Embedder { retry_after, .. } => {
                *retry_after
            }
            _ => None,
        }
    }

    /// Returns whether fewer calls at a time may help. An embedder that says
    /// for how long it wants to be left alone counts calls by the minute.
    pub fn asks_for_less(&self) -> bool {
        let is_overloaded =
            matches!(self, Self::Overloaded { retry_after, .. } if retry_after.is_none());
        is_overloaded || matches!(self, Self::Timeout { .. })
    }
}
