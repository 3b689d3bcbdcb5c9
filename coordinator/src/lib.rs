//! The coordinator of Weir: owns the queue in Postgres and every lease.

pub mod access;
pub mod claimer;
pub mod config;
mod files;
mod gather;
mod grpc;
#[cfg(fuzzing)]
pub use grpc::fuzzing;
mod http;
pub mod ingest;
pub mod job;
mod look;
pub mod maintenance;
pub mod metrics;
pub mod opener;
pub mod server;
pub mod store;
pub mod telemetry;
mod tls;
mod turns;
pub mod wakeup;
pub mod writer;
