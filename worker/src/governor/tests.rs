use std::{convert::Infallible, sync::Arc};

use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::testing::{EmbedCalls, FakeEmbedder, soon};

const LIMIT: Duration = Duration::from_mins(1);
/// These tests run on a paused clock, on which an hour passes at once.
const HOUR: Duration = Duration::from_hours(1);

/// A governor whose probe runs, and the calls of that probe.
fn start() -> (Arc<Governor>, EmbedCalls, AbortOnDropHandle<Infallible>) {
    let governor = Arc::new(Governor::new());
    let (embedder, calls) = FakeEmbedder::new();
    let probing = Arc::clone(&governor);
    let probe = tokio::spawn(async move { probing.run(&embedder, LIMIT).await });
    (governor, calls, AbortOnDropHandle::new(probe))
}

/// How long the probe waits before each of its next calls, all of which break
/// down.
async fn waits_of(calls: &mut EmbedCalls, count: usize) -> Vec<Duration> {
    let mut waits = Vec::new();
    for _ in 0..count {
        let before = Instant::now();
        let call = calls.next_within(HOUR).await;
        waits.push(before.elapsed());
        call.break_down("down");
    }
    waits
}

#[tokio::test(start_paused = true)]
async fn nothing_is_fit_before_a_probe_succeeds() {
    let (governor, mut calls, _probe) = start();
    assert_eq!(governor.down().await, "the embedder was not tried yet");
    let (sender, mut fit) = mpsc::unbounded_channel();
    let waiting = Arc::clone(&governor);
    tokio::spawn(async move { sender.send(waiting.fit().await) });
    calls.next().await.break_down("down");
    calls.next().await.fail("odd");
    let probe = calls.next().await;
    assert!(fit.try_recv().is_err());
    probe.succeed();
    assert_eq!(soon(fit.recv()).await.map(|probe| probe.dimension), Some(2));
}

#[tokio::test(start_paused = true)]
async fn probes_come_at_once_and_then_ever_more_rarely() {
    let (_governor, mut calls, _probe) = start();
    let waits = waits_of(&mut calls, 8).await;
    assert_eq!(waits[0], Duration::ZERO);
    for (wait, least) in waits[1..].iter().zip([1, 2, 4, 8, 15, 15, 15]) {
        let least = Duration::from_secs(least);
        assert!(least <= *wait && *wait <= 2 * least, "{waits:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_embedder_that_asks_for_time_gets_it_within_reason() {
    let (governor, mut calls, _probe) = start();
    for (asked, least) in [(100, 100), (1_000_000, 600)] {
        calls.next().await.answer(Err(EmbedError::Embedder {
            reason: "busy".to_owned(),
            retry_after: Some(Duration::from_secs(asked)),
        }));
        let before = Instant::now();
        let call = calls.next_within(HOUR).await;
        let waited = before.elapsed().as_secs();
        assert!((least..=least + 1).contains(&waited), "waited {waited}s");
        call.succeed();
        governor.fit().await;
        governor.failed("down", None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_known_until_the_next_probe_succeeds() {
    let (governor, mut calls, _probe) = start();
    calls.next().await.succeed();
    assert_eq!(governor.fit().await.dimension, 2);
    governor.failed("503", None);
    assert_eq!(governor.down().await, "503");
    // Not the first reason but the fact matters to those who come later.
    governor.failed("504", None);
    assert_eq!(governor.down().await, "503");
    calls.next().await.succeed();
    assert_eq!(governor.fit().await.dimension, 2);
}

#[tokio::test(start_paused = true)]
async fn only_an_embedded_batch_makes_the_waits_short_again() {
    let (governor, mut calls, _probe) = start();
    calls.next().await.succeed();
    let mut waits = Vec::new();
    for worked in [false, false, false, true] {
        governor.fit().await;
        if worked {
            governor.worked();
        }
        let before = Instant::now();
        governor.failed("429", None);
        calls.next().await.succeed();
        waits.push(before.elapsed().as_secs());
    }
    assert!(waits[2] >= 4, "{waits:?}");
    assert!(waits[3] <= 2, "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_counts_as_failed() {
    let (governor, mut calls, _probe) = start();
    let hanging = calls.next().await;
    let next = calls.next_within(HOUR).await;
    hanging.cancelled().await;
    next.succeed();
    governor.fit().await;
}
