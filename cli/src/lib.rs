//! The command line of Weir: puts documents, watches and searches them, and
//! runs all of Weir in one process, on an embedded Postgres if need be.

pub mod child;
pub mod postgres;

mod args;
mod connect;
mod document;
mod failure;
mod jobs;
mod local;
mod output;
mod put;
mod run;
mod search;
mod sources;
mod steer;
mod up;
mod view;
mod watch;

pub use run::main;
