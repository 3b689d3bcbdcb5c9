//! How long a queue takes to drain where the embedder rations its calls.

use std::time::Duration;

use weir_tests::embedder::RetryAfter;

use crate::{
    Table,
    run::{OPENAI, embed, with_sources},
};

/// Calls a second.
const CALLS: usize = 10;
/// Texts in a call.
const BATCH: usize = 4;

/// A line on the time that a queue takes, and the time that the quota allows.
pub(crate) async fn drain(texts: usize) -> Table {
    // Not for longer than a minute or so.
    let count = texts.min(60 * CALLS * BATCH);
    let texts = (0..count).map(|number| format!("parcel {number}"));
    let world = with_sources(vec![texts.collect()]).await;
    world.embedder.set_quota(CALLS, RetryAfter::Seconds);
    let batch = BATCH.to_string();
    let outcome = embed(&world, OPENAI, &[("WEIR_BATCH_SIZE", &batch)]).await;
    let (granted, refused): (Vec<_>, Vec<_>) = outcome.calls.iter().partition(|call| call.answered);
    // From the first call to the last: the start of the worker is no drain.
    let first = outcome.calls.first().map(|call| call.came);
    let last = granted.last().and_then(|call| call.ended);
    let took = first
        .zip(last)
        .and_then(|(first, last)| last.duration_since(first).ok());
    let took = took.unwrap_or_default().as_secs_f64();
    // The first calls come at once, and those of each second after it.
    let allowed = Duration::from_secs((granted.len().saturating_sub(1) / CALLS) as u64);
    let allowed = allowed.as_secs_f64();
    let mut table = Table::new(&format!(
        "quota of {CALLS} calls a second: {} calls in {took:.1} s, allowed {allowed:.1} s: {:.2}; \
         {} refused, {} rejected, {} charged",
        granted.len(),
        took / allowed,
        refused.len(),
        outcome.rejected,
        outcome.charged,
    ));
    table.expect("quota", &outcome, count as i64, 0);
    table
}
