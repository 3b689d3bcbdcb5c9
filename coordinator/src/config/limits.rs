//! Settings of how much one caller or one namespace may have.

use std::num::NonZeroU32;

use clap::Args;

/// How much one caller or one namespace may have.
#[derive(Debug, Clone, Args)]
pub struct LimitsConfig {
    /// Most calls a second of one token, or of one address where there are no tokens; as many may
    /// come at once. Each replica counts by itself.
    #[arg(long, env = "WEIR_REQUESTS_PER_SECOND")]
    pub requests_per_second: Option<NonZeroU32>,
    /// Most calls under way on one connection, streams and long polls among them. A worker has one
    /// for each of its jobs.
    #[arg(long, env = "WEIR_MAX_CALLS_PER_CONNECTION", default_value = "4096")]
    pub max_calls_per_connection: NonZeroU32,
    /// Most streams at a time of one token, or of one address where there are no tokens: watches, in
    /// whatever way they come, and KEDA's. Those of workers are not counted. Each replica counts by
    /// itself.
    #[arg(long, env = "WEIR_MAX_STREAMS_PER_CLIENT", default_value = "100")]
    pub max_streams_per_client: NonZeroU32,
    /// Most sources of a namespace.
    #[arg(long, env = "WEIR_MAX_SOURCES_PER_NAMESPACE")]
    pub max_sources_per_namespace: Option<NonZeroU32>,
    /// Most chunks that a namespace may have in queued and running jobs: a write that makes them
    /// more is refused.
    #[arg(long, env = "WEIR_MAX_PENDING_CHUNKS_PER_NAMESPACE")]
    pub max_pending_chunks_per_namespace: Option<NonZeroU32>,
}
