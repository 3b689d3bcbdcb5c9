//! Whether many small sources are embedded as fast as one large source.

use crate::run::{OLLAMA, embed, with_sources};

/// A line on the same texts as one source, and as a source each.
pub(crate) async fn compare(texts: usize) -> String {
    let texts: Vec<String> = (0..texts)
        .map(|number| format!("parcel {number}"))
        .collect();
    let each = texts.iter().map(|text| vec![text.clone()]).collect();
    let (mut seconds, mut calls) = (Vec::new(), Vec::new());
    for sources in [vec![texts], each] {
        let world = with_sources(sources).await;
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
