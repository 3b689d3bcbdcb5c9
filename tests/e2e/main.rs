//! End-to-end tests: the real processes, a real Postgres, real sockets.

mod api;
mod clients;
mod door;
