//! The protocol in small worlds, each of which has room for some kind of trouble.

use crate::{flaws::Flaws, step::Protocol, system::Budget};

/// Much goes wrong, and nobody writes.
pub(crate) const MISHAPS: Protocol = Protocol {
    flaws: Flaws(&[]),
    ranges: &[(0, 1)],
    chunks: 2,
    workers: 2,
    coordinators: 2,
    rejects: false,
    steers: false,
    budget: Budget {
        mishaps: 2,
        writes: 0,
        waits: 0,
    },
};

/// A client writes, and nothing goes wrong.
pub(crate) const WRITES: Protocol = Protocol {
    workers: 1,
    coordinators: 1,
    budget: Budget {
        mishaps: 0,
        writes: 1,
        waits: 1,
    },
    ..MISHAPS
};

/// Both.
pub(crate) const BOTH: Protocol = Protocol {
    workers: 2,
    budget: Budget {
        mishaps: 1,
        ..WRITES.budget
    },
    ranges: &[(0, 0)],
    chunks: 1,
    ..WRITES
};

/// Jobs that end at the hands of a client, and writes over what they left.
pub(crate) const ENDINGS: Protocol = Protocol {
    steers: true,
    budget: Budget {
        mishaps: 1,
        writes: 1,
        waits: 0,
    },
    ..WRITES
};

/// An embedder that embeds a text at one time and refuses it at another.
pub(crate) const VERDICTS: Protocol = Protocol {
    rejects: true,
    chunks: 1,
    budget: Budget {
        writes: 2,
        ..WRITES.budget
    },
    ..WRITES
};

/// A job that goes on where another would have ended.
pub(crate) const THREE_CHUNKS: Protocol = Protocol {
    ranges: &[(0, 2)],
    chunks: 3,
    budget: Budget {
        waits: 0,
        ..WRITES.budget
    },
    ..WRITES
};

/// Two jobs side by side.
pub(crate) const TWO_JOBS: Protocol = Protocol {
    ranges: &[(0, 0), (1, 1)],
    workers: 2,
    ..WRITES
};
