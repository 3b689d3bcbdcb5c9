//! The worker of Weir: takes batches of texts from the coordinator on one stream,
//! embeds them and sends the vectors back. It holds nothing that matters: whatever
//! it loses is given to another.

pub mod config;
pub mod telemetry;

mod backoff;
mod coordinator;
mod endpoint;
mod health;
mod http;
mod metrics;
mod part;
mod run;
mod session;
#[cfg(test)]
mod testing;
mod worker;

pub use config::Config;
pub use run::{Served, run};
