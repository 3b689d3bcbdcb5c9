//! Workers that follow demand: days of bursty puts in virtual time, through the
//! scaler's rule and those of KEDA and the horizontal autoscaler of pods, beside an
//! oracle that knows everything. `make bench-autoscaling` prints the table.

#![expect(clippy::print_stdout, reason = "it prints a table")]

mod demand;
mod pool;
mod scaler;

use demand::{DAY, Put, day};
use pool::{Outcome, oracle, scaled};
use scaler::Settings;
use weir_coordinator::job::pool::Pool;

/// The chart's values.
const CHART: Settings = Settings {
    pool: Pool {
        chunks_per_worker: 2_000,
        activation_chunks: 0,
    },
    min: 0,
    max: 10,
    polling: 30,
    cooldown: 300,
    push: true,
};

/// How much later than with the oracle each source was embedded, in order.
fn lateness(outcome: &Outcome, best: &Outcome) -> Vec<usize> {
    let pairs = outcome.seconds.iter().zip(&best.seconds);
    let mut late: Vec<usize> = pairs.map(|(one, best)| one.saturating_sub(*best)).collect();
    late.sort_unstable();
    late
}

fn share(sorted: &[usize], percent: usize) -> usize {
    sorted[(sorted.len() - 1) * percent / 100]
}

fn row(name: &str, outcome: &Outcome, best: &Outcome) {
    let late = lateness(outcome, best);
    println!(
        "{name:<44}{:>6}{:>6}{:>6}{:>9.1}{:>9.2}{:>8.1}{:>6}{:>9}{:>7}",
        share(&late, 50),
        share(&late, 95),
        share(&late, 100),
        outcome.pod_hours,
        outcome.pod_hours / best.pod_hours,
        outcome.asleep as f64 / 3_600.0,
        outcome.most,
        outcome.changes,
        outcome.reversals,
    );
}

fn chunks(puts: &[Put]) -> u64 {
    puts.iter().map(|put| put.chunks).sum()
}

#[test]
fn workers_follow_demand_without_flapping() {
    for seed in 1..=5 {
        let puts = day(seed);
        let best = oracle(&puts, CHART.max);
        let outcome = scaled(&puts, CHART);
        let late = lateness(&outcome, &best);
        assert_eq!(outcome.embedded, chunks(&puts), "scale-in costs no work");
        assert!(
            share(&late, 50) <= 60 && share(&late, 95) <= 180,
            "seed {seed}: late by {} s in half of the cases, by {} s in one of twenty",
            share(&late, 50),
            share(&late, 95),
        );
        let hours = outcome.pod_hours / best.pod_hours;
        assert!(
            hours <= 3.5,
            "seed {seed}: {hours} times the pod-hours needed"
        );
        assert!(
            outcome.asleep >= 6 * 3_600,
            "seed {seed}: it sleeps at night"
        );
        assert!(
            outcome.reversals <= 6,
            "seed {seed}: {} of {} changes were taken back within five minutes",
            outcome.reversals,
            outcome.changes,
        );
    }
}

#[test]
fn the_first_job_wakes_a_sleeping_pool_at_once() {
    let one = [Put {
        at: DAY / 2 + 1,
        chunks: 20,
    }];
    let pushed = scaled(&one, CHART);
    let polled = scaled(
        &one,
        Settings {
            push: false,
            ..CHART
        },
    );
    assert!(pushed.seconds[0] < polled.seconds[0]);
    assert_eq!((pushed.most, pushed.changes), (1, 2));
}

#[test]
fn a_table_of_a_day() {
    let puts = day(1);
    let best = oracle(&puts, CHART.max);
    println!(
        "\n{} sources with {} chunks in a day; a worker embeds {} a second and starts in 40 s.\n",
        puts.len(),
        chunks(&puts),
        pool::RATE
    );
    println!(
        "{:<44}{:>18}{:>9}{:>9}{:>8}{:>6}{:>9}{:>7}\n{:<44}{:>6}{:>6}{:>6}{:>9}{:>9}{:>8}",
        "",
        "late by, s",
        "pod-",
        "of the",
        "asleep",
        "most",
        "changes",
        "taken",
        "",
        "50%",
        "95%",
        "100%",
        "hours",
        "oracle",
        "h",
    );
    row("oracle", &best, &best);
    row(
        "keda-external, as the chart has it",
        &scaled(&puts, CHART),
        &best,
    );
    let polled = Settings {
        push: false,
        ..CHART
    };
    row("KEDA without the push", &scaled(&puts, polled), &best);
    for chunks_per_worker in [500, 8_000] {
        let pool = Pool {
            chunks_per_worker,
            ..CHART.pool
        };
        let name = format!("{chunks_per_worker} chunks a worker");
        row(&name, &scaled(&puts, Settings { pool, ..CHART }), &best);
    }
    let hpa = Settings { min: 1, ..CHART };
    row("hpa, at least one", &scaled(&puts, hpa), &best);
    let fixed = Settings { min: 10, ..CHART };
    row("ten all day", &scaled(&puts, fixed), &best);
}
