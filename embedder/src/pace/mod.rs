//! How fast an embedder is called: what is learned from its answers, and what its
//! quotas allow.

mod concurrency;
mod rates;

pub use self::{concurrency::Concurrency, rates::Rates};
