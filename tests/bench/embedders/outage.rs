//! How many calls it takes where the embedder is out for a while, and what is
//! lost by it: nothing may be.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use weir_tests::embedder::{Call, Rude};

use crate::{
    Table,
    run::{OLLAMA, embed, with_sources},
};

const BATCH: usize = 8;
/// How long it is out: a second for so many texts.
const TEXTS_A_SECOND: usize = 100;

/// What it says to every call meanwhile, of probes too.
struct Outage {
    name: &'static str,
    says: fn() -> Rude,
}

const OUTAGES: [Outage; 5] = [
    Outage {
        name: "503 to everything",
        says: || Rude::Status(503, None, r#"{"error":"starting"}"#.to_owned()),
    },
    Outage {
        name: "500 to everything",
        says: || {
            Rude::Status(
                500,
                None,
                r#"{"error":"CUDA error: device lost"}"#.to_owned(),
            )
        },
    },
    Outage {
        name: "400 to everything",
        says: || Rude::Status(400, None, r#"{"error":"unsupported value"}"#.to_owned()),
    },
    Outage {
        name: "400, too long, to everything",
        says: || {
            let error = r#"{"error":"the input length exceeds the context length"}"#;
            Rude::Status(400, None, error.to_owned())
        },
    },
    Outage {
        name: "a web page to everything",
        says: || Rude::Page,
    },
];

/// A line for each outage, which begins when half of the texts have come.
pub(crate) async fn compare(count: usize) -> Table {
    let count = count.min(1_000);
    let lasts = Duration::from_secs(count.div_ceil(TEXTS_A_SECOND) as u64);
    let mut table = Table::new(&format!(
        "{count} texts, {BATCH} a call, an embedder that is out for {} s",
        lasts.as_secs()
    ));
    println!(
        "{:<30} {:>6} {:>6} {:>9} {:>9} {:>8} {:>7}",
        "outage", "calls", "least", "while out", "back in", "rejected", "charged"
    );
    for outage in &OUTAGES {
        let texts = (0..count).map(|number| format!("parcel {number:06}"));
        let world = with_sources(vec![texts.collect()]).await;
        let says = outage.says;
        let state = Mutex::new((0, None::<Instant>));
        world.embedder.rule(move |texts| {
            let mut state = state.lock().expect("no rule panics");
            state.0 += texts.len();
            if state.0 < count / 2 {
                return None;
            }
            let began = *state.1.get_or_insert_with(Instant::now);
            (began.elapsed() < lasts).then(says)
        });
        let outcome = embed(&world, OLLAMA, &[("WEIR_BATCH_SIZE", &BATCH.to_string())]).await;
        let failed: Vec<&Call> = outcome.calls.iter().filter(|call| !call.answered).collect();
        let (first, last) = (failed.first(), failed.last());
        let back = first.zip(last).and_then(|(first, last)| {
            let works = |call: &&Call| call.answered && call.came > last.came;
            let back = outcome.calls.iter().find(works)?;
            back.came
                .duration_since(first.came)
                .ok()?
                .checked_sub(lasts)
        });
        println!(
            "{:<30} {:>6} {:>6} {:>9} {:>7.1} s {:>8} {:>7}",
            outage.name,
            outcome.calls.len(),
            count.div_ceil(BATCH),
            failed.len(),
            back.unwrap_or_default().as_secs_f64(),
            outcome.rejected,
            outcome.charged,
        );
        table.expect(outage.name, &outcome, count as i64, 0);
    }
    table
}
