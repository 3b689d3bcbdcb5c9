//! The table at the end of a run.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use sqlx::PgPool;

use crate::{
    clients::Counts,
    cluster::{Cluster, IN_HAND},
    history::History,
    journal::Journal,
    repeats,
};

/// Prints what a run did, and finds what was repeated too often.
pub(crate) async fn print(
    cluster: &Cluster,
    calls: &[&Counts],
    history: &History,
    chunks: usize,
    journal: &Journal,
    pool: &PgPool,
) {
    let events = journal.events();
    let mut faults: BTreeMap<(&str, &str), (usize, Duration)> = BTreeMap::new();
    for event in &events {
        let until = history.until_progress(event.from).unwrap_or_default();
        let (count, longest) = faults
            .entry((event.place.kind(), event.fault.kind()))
            .or_default();
        *count += 1;
        *longest = until.max(*longest);
    }
    println!(
        "\n{:<24}{:<18}{:>6}  longest until work went on",
        "fault", "", "times"
    );
    for ((place, fault), (count, longest)) in faults {
        println!(
            "{place:<24}{fault:<18}{count:>6}  {:.1} s",
            longest.as_secs_f64()
        );
    }
    println!("{:<42}{:>6}", "all", events.len());

    let mut counts = Counts::new();
    for (key, count) in calls.iter().copied().flatten() {
        *counts.entry(*key).or_default() += count;
    }
    println!("\n{:<24}{:<18}{:>6}", "call of a client", "", "times");
    for ((kind, outcome), count) in counts {
        println!("{kind:<24}{outcome:<18}{count:>6}");
    }

    let jobs: Vec<(String, i64)> =
        sqlx::query_as("SELECT state, count(*) FROM weir.jobs GROUP BY state ORDER BY state")
            .fetch_all(pool)
            .await
            .expect("the database answers");
    let (leases, lost) = history.leases();
    let calls = cluster.embedder.calls();
    let answered = calls.iter().filter(|call| call.answered).count();
    let repeats = repeats::reckon(history, &calls, &events, journal);
    let killed = cluster.worker_kills.load(Ordering::SeqCst);
    let revoked: usize = lost.values().sum();
    println!("\njobs                    {jobs:?}");
    println!("chunks at the end       {chunks}");
    println!("leases                  {leases}, of these lost {lost:?}");
    println!(
        "calls of the embedder   {}, answered {answered}",
        calls.len()
    );
    println!("texts embedded again    {:?}", repeats.texts);
    let texts = repeats.by_leases();
    let bound = (killed + revoked) * IN_HAND;
    println!(
        "  in batches            {}; by lost leases {texts} texts, at most ({killed} killed + {revoked} lost) x {IN_HAND} = {bound}",
        repeats.calls
    );
    println!(
        "longest recovery        {:.1} s from the last that was heard of a job under a lost lease until it moved on\n",
        history.longest_recovery.as_secs_f64()
    );
    if texts > bound {
        journal.find(format!(
            "{texts} texts were embedded again, more than {bound}"
        ));
    }
}
