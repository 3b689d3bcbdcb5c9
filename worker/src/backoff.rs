//! How this worker waits before it tries again, everywhere.

use std::time::Duration;

use backon::ExponentialBuilder;

/// Endless waits that double from `first` to `longest`. Jitter adds up to as
/// much again to each, so that workers that failed together do not come back
/// together.
pub(crate) fn waits(first: Duration, longest: Duration) -> ExponentialBuilder {
    ExponentialBuilder::new()
        .with_min_delay(first)
        .with_max_delay(longest)
        .without_max_times()
        .with_jitter()
}
