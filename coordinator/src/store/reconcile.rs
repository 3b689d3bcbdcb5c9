//! The reconciler's steps: failed jobs whose parking is over are queued again,
//! and sources whose vectors do not match their chunks are found and put right.

mod check;
mod repair;
mod unpark;

pub use self::{
    check::{Check, Checked, Findings},
    repair::Repaired,
    unpark::Unparked,
};
