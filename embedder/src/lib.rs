//! How Weir speaks to embedding servers, and how it judges what they answer.

pub mod judge;
