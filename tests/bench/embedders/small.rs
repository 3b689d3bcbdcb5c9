//! Whether many small sources are embedded as fast as one large source.

use std::time::Duration;

use crate::run::{OLLAMA, embed, with_sources};

/// What a call takes, and each text of it, at an embedder that computes
/// something: 32 texts take 84 ms.
const COMPUTING: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(2));

/// Two lines: with an embedder that computes, and with one that takes no time,
/// so that all that is left is Weir.
pub(crate) async fn compare(texts: usize) -> Vec<String> {
    let computing = compare_at(texts, COMPUTING).await;
    let instant = compare_at(texts, Default::default()).await;
    vec![
        format!("embedder of 2 ms a text: {computing}"),
        format!("embedder of no time: {instant}"),
    ]
}

/// A line on the same texts as one source, and as a source each.
async fn compare_at(texts: usize, delay: (Duration, Duration)) -> String {
    let texts: Vec<String> = (0..texts)
        .map(|number| format!("parcel {number}"))
        .collect();
    let each = texts.iter().map(|text| vec![text.clone()]).collect();
    let (mut seconds, mut calls) = (Vec::new(), Vec::new());
    for sources in [vec![texts], each] {
        let world = with_sources(sources).await;
        world.embedder.set_delay(delay.0, delay.1);
        let outcome = embed(&world, OLLAMA, &[]).await;
        seconds.push(outcome.took.as_secs_f64());
        calls.push(outcome.calls.len());
    }
    format!(
        "one source: {:.1} s, {} calls; a source each: {:.1} s, {} calls: {:.2}",
        seconds[0],
        calls[0],
        seconds[1],
        calls[1],
        seconds[1] / seconds[0],
    )
}
