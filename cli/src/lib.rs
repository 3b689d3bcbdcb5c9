//! The command line of Weir: puts documents, watches and searches them, and
//! runs all of Weir in one process, on an embedded Postgres if need be.

pub mod child;
pub mod postgres;

mod args;
mod badge;
mod chunks;
mod config;
mod connect;
mod credentials;
mod doctor;
mod document;
mod failure;
mod failures;
mod job;
mod jobs;
mod local;
mod output;
mod page;
mod printable;
mod put;
mod resend;
mod run;
mod search;
mod shell;
mod sources;
mod status;
mod steer;
mod stream;
mod table;
mod trust;
mod up;
mod view;
mod watch;
mod workers;

pub use run::main;
