//! What goes into a judge and what comes out of it.

use super::CallSize;

/// Names a text that is to be embedded. Unique among those of a judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TextId(pub u64);

/// Names a call. Rises with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallId(pub u64);

/// What a judge never goes beyond.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Most that one call carries.
    pub ceiling: CallSize,
    /// Texts are not shortened to less than this, in bytes; more than 0.
    pub shortest: usize,
}

/// What to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// These texts, of each its first so many bytes.
    Embed(CallId, Vec<(TextId, usize)>),
    /// A text that is known to be good, of about so many bytes. 0 for the
    /// shortest.
    Probe(CallId, usize),
}

impl Call {
    /// Returns the name of the call.
    pub fn id(&self) -> CallId {
        match self {
            Self::Embed(id, _) | Self::Probe(id, _) => *id,
        }
    }
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// There is a vector for each text; for some it may be one that cannot be
    /// used, and why.
    Vectors(Vec<Option<String>>),
    /// There are none.
    Failed {
        /// What the failure most likely means.
        hint: Hint,
        /// What happened, for a person.
        reason: String,
    },
}

/// What a failure most likely means, by what was said with it. May be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// Nothing is known.
    Unknown,
    /// The text at this place cannot be embedded.
    Text(usize),
    /// A text is too long, where known the one at this place.
    TooLong(Option<usize>),
    /// The call carries too much.
    TooMuch,
    /// The embedder has too much to do, or a quota is used up.
    Busy,
    /// The embedder cannot embed anything for now.
    Down,
    /// The connection broke, or there was no answer in time: the embedder may
    /// have died, perhaps of a text.
    Broken,
}

/// What an answer proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The vector at this place of the answer is that of the first `bytes` of
    /// the text.
    Embedded {
        /// Which text.
        text: TextId,
        /// The place of its vector in the answer.
        place: usize,
        /// Less than all of it where it was too long.
        bytes: usize,
    },
    /// The text can never be embedded.
    Rejected {
        /// Which text.
        text: TextId,
        /// What the embedder said, for a person.
        reason: String,
    },
    /// The embedder embeds nothing. Whatever waits is best handed back.
    Down {
        /// What it said, for a person.
        reason: String,
    },
    /// The embedder embeds again.
    Fit,
    /// The embedder is to be left alone for a while: longer each time until
    /// something passes.
    Rest,
}
