//! The command line of Weir, and an embedded Postgres for those who want one.

pub mod child;
pub mod postgres;
