//! The coordinator of Weir: owns the queue in Postgres and every lease.

pub mod access;
pub mod config;
pub mod dispatch;
mod files;
mod grpc;
#[cfg(fuzzing)]
pub use grpc::fuzzing;
mod http;
pub mod ingest;
pub mod job;
mod look;
pub mod maintenance;
pub mod metrics;
pub mod server;
mod spans;
pub mod store;
pub mod telemetry;
mod tls;
mod turns;
pub mod wakeup;
