//! The worker of Weir: claims jobs from the coordinator, embeds their chunks and
//! streams the vectors back. It holds nothing that matters: whatever it loses
//! is claimed again by another.

pub mod config;
pub mod telemetry;

mod backoff;
mod claimer;
mod coordinator;
mod endpoint;
mod health;
mod http;
mod metrics;
mod plan;
mod run;
mod session;
#[cfg(test)]
mod testing;

pub use config::Config;
pub use run::{Served, run};
