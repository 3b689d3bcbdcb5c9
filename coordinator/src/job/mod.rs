//! The ground: pure rules about jobs. Knows no clock, no network and no
//! database; time and randomness are arguments.

pub mod chunk;
