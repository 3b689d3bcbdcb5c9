//! The coordinator.

pub mod ingest;
pub mod job;
