//! The dashboard in a real browser, on the real processes.
use fantoccini as _;
