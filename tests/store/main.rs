//! The store on a real Postgres: one test for each law that lives in SQL.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what the tests share fails the test that uses it"
)]

mod batches;
mod bisection;
mod checks;
mod claimer;
mod claims;
mod commit_then_error;
mod fencing;
mod fixture;
mod forced;
mod groups;
mod guesses;
mod imports;
mod laws;
mod leftovers;
mod migrations;
mod models;
mod moves;
mod online;
mod openings;
mod orphans;
mod prompts;
mod reads;
mod reconcile;
mod rejections;
mod rescue;
mod retention;
mod revisions;
mod roster;
mod schema;
mod scope;
mod search;
mod shares;
mod silence;
mod sources;
mod status;
mod steer;
mod together;
mod truncation;
mod workers;
