//! The worker.
pub mod embedder;
