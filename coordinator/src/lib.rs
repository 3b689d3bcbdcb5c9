//! The coordinator of Weir: owns the queue in Postgres and every lease.

pub mod config;
mod grpc;
mod http;
pub mod ingest;
pub mod job;
pub mod maintenance;
pub mod metrics;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod wakeup;
pub mod writer;
