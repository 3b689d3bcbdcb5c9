//! Whether many small sources are embedded as fast as one large source.

use std::time::Duration;

use crate::{
    Table,
    run::{OLLAMA, embed, with_sources},
};

/// What a call takes, and each text of it, at an embedder that computes
/// something: 32 texts take 84 ms.
const COMPUTING: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(2));

/// Two lines: with an embedder that computes, and with one that takes no time,
/// so that all that is left is Weir.
pub(crate) async fn compare(texts: usize) -> Table {
    let mut table = Table::new(&format!(
        "{texts} texts, as one source and as a source each"
    ));
    for (name, delay) in [
        ("embedder of 2 ms a text", COMPUTING),
        ("embedder of no time", Default::default()),
    ] {
        compare_at(&mut table, name, texts, delay).await;
    }
    table
}

/// A line on the same texts as one source, and as a source each.
async fn compare_at(table: &mut Table, name: &str, count: usize, delay: (Duration, Duration)) {
    let texts: Vec<String> = (0..count)
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
        table.expect(name, &outcome, count as i64, 0);
    }
    println!(
        "{name}: one source: {:.1} s, {} calls; a source each: {:.1} s, {} calls: {:.2}",
        seconds[0],
        calls[0],
        seconds[1],
        calls[1],
        seconds[1] / seconds[0],
    );
}
