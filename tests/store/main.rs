//! The store on a real Postgres: one test for each law that lives in SQL.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what the tests share fails the test that uses it"
)]

mod batches;
mod bisection;
mod claims;
mod fencing;
mod fixture;
mod imports;
mod laws;
mod orphans;
mod reads;
mod reconcile;
mod rescue;
mod retention;
mod schema;
mod search;
mod sources;
mod steer;
