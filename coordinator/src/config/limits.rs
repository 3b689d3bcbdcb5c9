//! Settings of how much one caller or one namespace may have.

use std::{num::NonZeroU32, str::FromStr};

use clap::Args;

use crate::{access::is_namespace, job::fair_share::MAX_WEIGHT};

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
    /// How much of the workers a namespace has beside the others while all have work, separated by
    /// commas: with `a=3,b=1` three times as many chunks of `a` are embedded as of `b`. 1 to 1000; 1
    /// for those that are not named.
    #[arg(long, env = "WEIR_NAMESPACE_WEIGHTS", value_delimiter = ',')]
    pub namespace_weights: Vec<NamespaceWeight>,
}

/// The weight of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceWeight {
    /// Which namespace.
    pub namespace: String,
    /// 1 to [`MAX_WEIGHT`].
    pub weight: u32,
}

impl FromStr for NamespaceWeight {
    type Err = String;

    /// Reads `namespace=weight`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, number) = text
            .split_once('=')
            .ok_or("must be a namespace, = and its weight, as in shop=3")?;
        if !is_namespace(namespace) {
            return Err(format!("{namespace:?} is no namespace"));
        }
        let weight = number.parse().ok().filter(|it| {
            number.bytes().all(|byte| byte.is_ascii_digit()) && (1..=MAX_WEIGHT).contains(it)
        });
        let weight = weight.ok_or_else(|| {
            format!("the weight of {namespace} must be a whole number from 1 to {MAX_WEIGHT}")
        })?;
        Ok(Self {
            namespace: namespace.to_owned(),
            weight,
        })
    }
}
