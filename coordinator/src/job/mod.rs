//! The pure rules of jobs: states, retries, planning. No runtime, no database,
//! no wire; time and randomness come in as arguments.

pub mod badge;
pub mod blame;
pub mod cause;
pub mod chunk;
pub mod fair_share;
pub mod parking;
pub mod plan;
pub mod pool;
pub mod retry;
pub mod state;
