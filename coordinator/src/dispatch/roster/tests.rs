//! When sessions are touched, and what their meters tell.

use std::time::Duration;

use tokio::time::{Instant, advance};

use super::{Pace, Roster, meter::Meter, session_grace};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn two_touches_in_a_row_may_be_lost_under_any_grace() {
    for grace_ms in [1, 40, 1_000, 10_000, 3_600_000] {
        let grace = Duration::from_millis(grace_ms);
        let pace = Pace::of(grace);
        let over = session_grace(grace);
        assert!(pace.every * 3 < over, "{grace:?}: {pace:?}");
        assert!(pace.every <= 3 * SECOND && pace.pause < pace.every);
        assert!(pace.pause <= SECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn a_touch_is_due_after_its_time_or_at_once_when_something_changed() {
    let roster = Roster::new("replica");
    let pace = Pace::of(10 * SECOND);
    let start = Instant::now();
    roster.due(pace).await;
    assert_eq!(start.elapsed() + pace.pause, pace.every);
    // What changes while a touch is under way is not forgotten.
    roster.inner.changed.notify_one();
    let start = Instant::now();
    roster.due(pace).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
}

/// Adds so many chunks a second for so many seconds, and reads every second.
async fn run(meter: &mut Meter, chunks: usize, seconds: u32) -> f64 {
    let mut rate = f64::NAN;
    for _ in 0..seconds {
        advance(SECOND).await;
        meter.add(chunks);
        rate = meter.read(Instant::now());
    }
    rate
}

fn is(rate: f64, wanted: f64) {
    assert!((rate - wanted).abs() < 1e-9, "{rate} is not {wanted}");
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_that_of_the_last_ten_seconds() {
    let mut meter = Meter::new(Instant::now());
    is(meter.read(Instant::now()), 0.0);
    is(run(&mut meter, 5, 3).await, 5.0);
    is(run(&mut meter, 5, 60).await, 5.0);
    is(run(&mut meter, 15, 5).await, 10.0);
    is(run(&mut meter, 0, 10).await, 0.0);
    assert_eq!(meter.total(), 5 * 63 + 15 * 5);
}

#[tokio::test(start_paused = true)]
async fn what_was_counted_in_a_moment_is_not_taken_for_a_rate() {
    let mut meter = Meter::new(Instant::now());
    advance(SECOND / 100).await;
    meter.add(8);
    is(meter.read(Instant::now()), 8.0);
    // Reading it often keeps no more than a reading for each half second.
    for _ in 0..3_000 {
        advance(SECOND / 100).await;
        meter.read(Instant::now());
    }
    assert!(meter.kept() <= 21, "{} readings", meter.kept());
    is(meter.read(Instant::now()), 0.0);
}
