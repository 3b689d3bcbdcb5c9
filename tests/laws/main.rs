//! The laws of ARCHITECTURE.md, each as its user sees it: real processes, real
//! sockets, a real Postgres, and nothing known of what is inside.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where it cannot go on"
)]

mod blame;
mod bounds;
mod clock;
mod fencing;
mod loss;
mod matching;
mod neighbours;
mod once;
mod overlap;
mod progress;
mod renewal;
mod shares;
mod silence;
mod state;
mod words;
