//! The coordinator of Weir: owns the queue in Postgres and every lease.

pub mod config;
pub mod ingest;
pub mod job;
pub mod store;
