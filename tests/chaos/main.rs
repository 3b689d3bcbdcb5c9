//! Chaos: a cluster of real processes under a seeded schedule of faults, while
//! clients write. When the dust settles, an independent check reads the
//! database and the embedder's log.
//!
//! `CHAOS_SEED` and `CHAOS_MINUTES` say which run, and how long.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a run tells what it does, and ends where it cannot go on"
)]

mod check;
mod clients;
mod cluster;
mod history;
mod hot;
mod journal;
mod ledger;
mod pen;
mod repeats;
mod report;
mod schedule;
mod servers;

use std::{collections::BTreeMap, env, path::PathBuf, str::FromStr, time::Duration};

use sqlx::postgres::PgPoolOptions;
use tokio::{task::JoinSet, time};
use tokio_util::sync::CancellationToken;

use crate::{
    clients::{Client, STRAGGLER_IN_PEACE},
    cluster::Cluster,
    history::History,
    hot::Hot,
    journal::Journal,
    schedule::{CLIENTS, COORDINATORS, Place},
};

/// The run of the suite.
const SEED: u64 = 15;
const MINUTES: f64 = 0.4;

fn setting<T: FromStr>(name: &str, default: T) -> T {
    match env::var(name) {
        Ok(text) if !text.is_empty() => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is not a number: {text:?}")),
        _ => default,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_law_holds_under_every_fault() {
    let seed = setting("CHAOS_SEED", SEED);
    let minutes = setting("CHAOS_MINUTES", MINUTES);
    let length = Duration::from_secs_f64(minutes * 60.0);
    println!("make chaos SEED={seed} MINUTES={minutes}");
    let journal = Journal::new();
    let cluster = Cluster::start(&journal, seed).await;
    let pool = PgPoolOptions::new()
        .max_connections(4)
        .acquire_timeout(Duration::from_secs(2))
        .connect_lazy(&cluster.database_url())
        .expect("the URL is ours");
    history::begin(&pool).await.expect("triggers can be made");

    let over = journal.elapsed() + length;
    let stop = CancellationToken::new();
    let mut running = JoinSet::new();
    for n in 0..CLIENTS {
        let url = cluster.client_links[n].url();
        let client = Client::new(n, seed, url, pool.clone(), journal.clone());
        running.spawn(client.run(stop.clone()));
    }
    let hot = Hot::new(seed, cluster.hot_link.url(), journal.clone());
    let hot = tokio::spawn(hot.run(stop.clone()));
    tokio::select! {
        () = cluster.suffer_all(length) => {}
        () = check::watch(&pool, &journal) => {}
    }
    time::sleep(over.saturating_sub(journal.elapsed())).await;
    journal.say("Every fault is over; the clients stop.");
    stop.cancel();
    let mut clients = running.join_all().await;
    let hot = hot.await.expect("the client of the hot source ends");
    cluster.expect_alive().await;
    time::sleep(STRAGGLER_IN_PEACE).await;
    for client in &mut clients {
        client.settle().await;
    }
    journal.say("Every client knows what it wrote; the jobs end.");
    check::dust_settles(&pool, &journal).await;
    journal.say("The dust has settled.");

    let mut ledgers: BTreeMap<_, _> = clients
        .iter()
        .flat_map(|client| &client.kept)
        .map(|(name, kept)| (name.clone(), kept.ledger.clone()))
        .collect();
    ledgers.insert(hot::SOURCE.to_owned(), hot.ledger.clone());
    let chunks = check::check(&pool, &ledgers, &journal)
        .await
        .expect("the database answers");
    let history = History::read(&pool).await.expect("the database answers");
    let counts = clients.iter().map(|client| &client.counts);
    let counts: Vec<_> = counts.chain([&hot.counts]).collect();
    report::print(&cluster, &counts, &history, chunks, &journal, &pool).await;

    let findings = journal.findings();
    if !findings.is_empty() {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}"));
        cluster
            .keep_logs(&folder)
            .await
            .expect("logs can be written");
        // Before the panic, so that the processes do not say it all again.
        drop(cluster);
        panic!(
            "make chaos SEED={seed} MINUTES={minutes} found:\n- {}\nThe logs are in {}",
            findings.join("\n- "),
            folder.display()
        );
    }
}

#[test]
fn the_run_of_the_suite_loses_a_node_and_a_server_and_has_sources_locked() {
    let length = Duration::from_secs_f64(MINUTES * 60.0);
    let steps = |place| schedule::steps(SEED, place, length);
    let befalls = |place: Place, kind: &str| steps(place).iter().any(|it| it.fault.kind() == kind);
    assert!(befalls(Place::Postgres, "promoted"));
    assert!(befalls(Place::Source, "locked"));
    assert!(befalls(Place::Source, "locked, hot"));
    assert!((0..COORDINATORS).any(|n| befalls(Place::Node(n), "SIGKILL")));
}
