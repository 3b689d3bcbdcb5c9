//! The dashboard in a real browser, on the real processes. `make test-browser`
//! gets the browser where it is missing and runs this.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where it cannot go on"
)]

mod access;
mod browser;
mod keyboard;
mod looks;
mod pages;
mod safety;
mod scene;
mod states;
mod story;
mod streams;
