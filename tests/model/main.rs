//! The lease protocol as a model: every state that it can reach within small
//! bounds is looked at, and the laws hold in each.
//!
//! **What is modelled.** One source of up to three chunks, which is planned in one
//! job or several; the rows of its jobs, vectors and rejections, with the store's
//! statements as atomic steps (`database.rs`, `job.rs`); writes of content, which
//! change, add and delete chunks within the jobs' ranges and outside of them, a new
//! model, cancelling and retrying (`content.rs`); two workers, two coordinators
//! that remember nothing but their open streams and what they have listed for them,
//! and the rescuer (`system.rs`, `step.rs`, `apply.rs`). Requests once sent stay
//! under way for good, so each may arrive late, often, out of order or never, at
//! either coordinator; answers may be lost. Workers may stop for any time at any
//! point: a step that could come need not.
//!
//! A statement that reads chunks and locks a job's row can be two steps
//! (`results.rs`): it reads the chunks of its snapshot, others commit, and it locks
//! the row as they left it. Those that hold the lock of the source, or read nothing
//! but the row that they lock, have no such gap.
//!
//! **Bounds.** So that there is an end, a history has a limited number of
//! mishaps (a crash, a pause past the lease, a broken stream, a coordinator's
//! restart, a lost answer, a job handed back, cancelled, or given another model), of
//! writes, and of statements that are overtaken: all combinations of so many, at
//! all moments. What follows from them is free.
//!
//! **Left out.** Time: a lease that may expire does so at any moment, or never,
//! and a retry waits for nothing. The models' names and dimensions, prompts, the
//! division of large jobs, rejections taken back, and batches of more than one
//! chunk. A worker is taken to embed at once and to send late, which is the same to
//! all others. A worker comes back to a coordinator only after that one has noticed
//! that their last stream broke.

#![expect(
    clippy::panic,
    reason = "what the tests share fails the test that uses it"
)]

mod apply;
mod caught;
mod content;
mod database;
mod flaws;
mod job;
mod laws;
mod protocols;
mod results;
mod search;
mod step;
mod system;

use crate::{
    flaws::{Flaw, Flaws},
    protocols::{BOTH, ENDINGS, MISHAPS, THREE_CHUNKS, TWO_JOBS, VERDICTS, WRITES},
    search::{dead_ends, exhaust},
    step::Protocol,
    system::Budget,
};

#[expect(
    clippy::print_stderr,
    reason = "the size of what was gone through is worth seeing"
)]
fn assert_sound(protocol: Protocol, least: usize) {
    let states = exhaust(protocol);
    eprintln!("{states} states");
    assert!(states > least, "{states} states");
}

#[test]
fn every_law_holds_whatever_two_mishaps_two_chunks_meet() {
    assert_sound(MISHAPS, 300_000);
}

#[test]
fn every_law_holds_whatever_three_mishaps_one_chunk_meets() {
    let budget = Budget {
        mishaps: 3,
        ..MISHAPS.budget
    };
    let protocol = Protocol {
        ranges: &[(0, 0)],
        chunks: 1,
        coordinators: 1,
        budget,
        ..MISHAPS
    };
    assert_sound(protocol, 400_000);
}

#[test]
fn every_law_holds_whatever_two_writes_do_under_a_job() {
    let budget = Budget {
        writes: 2,
        ..WRITES.budget
    };
    assert_sound(Protocol { budget, ..WRITES }, 150_000);
    assert_sound(VERDICTS, 60_000);
}

#[test]
fn every_law_holds_whatever_a_write_does_among_jobs() {
    assert_sound(TWO_JOBS, 25_000);
    let beside = Protocol {
        ranges: &[(0, 1), (2, 2)],
        chunks: 1,
        ..TWO_JOBS
    };
    assert_sound(beside, 30_000);
    // Chunks on both sides of a job that is open, and many at once.
    let layouts: [&[(usize, usize)]; 3] = [&[(0, 2)], &[(0, 0), (1, 1), (2, 2)], &[(1, 1)]];
    for ranges in layouts {
        assert_sound(
            Protocol {
                ranges,
                ..THREE_CHUNKS
            },
            100,
        );
    }
}

#[test]
fn every_law_holds_whatever_a_write_and_a_mishap_do() {
    assert_sound(BOTH, 25_000);
    assert_sound(ENDINGS, 80_000);
    assert_sound(
        Protocol {
            ranges: TWO_JOBS.ranges,
            ..ENDINGS
        },
        90_000,
    );
}

#[test]
fn from_every_state_the_work_can_still_be_done() {
    let mishaps = |ranges, mishaps| Protocol {
        ranges,
        budget: Budget {
            mishaps,
            ..MISHAPS.budget
        },
        ..MISHAPS
    };
    let written = Budget {
        waits: 0,
        writes: 2,
        mishaps: 0,
    };
    for (protocol, least) in [
        (mishaps(&[(0, 0)], 2), 15_000),
        (mishaps(&[(0, 1)], 1), 4_000),
        (WRITES, 5_000),
        (
            Protocol {
                budget: written,
                ..TWO_JOBS
            },
            5_000,
        ),
        (
            Protocol {
                steers: true,
                ..BOTH
            },
            30_000,
        ),
    ] {
        let (states, dead) = dead_ends(&protocol);
        assert!(states > least, "{states} states");
        assert!(
            dead.is_empty(),
            "{} dead ends, one is {:?}",
            dead.len(),
            dead[0]
        );
    }
}

#[test]
fn without_a_rescuer_work_is_lost() {
    let (_, dead) = dead_ends(&Protocol {
        flaws: Flaws(&[Flaw::NoRescuer]),
        ..BOTH
    });
    assert!(!dead.is_empty());
}

#[test]
fn what_is_listed_once_is_never_finished() {
    let (_, dead) = dead_ends(&Protocol {
        flaws: Flaws(&[Flaw::ListsOnce]),
        ..WRITES
    });
    assert!(!dead.is_empty());
}

/// A stale lease is refused by the epoch of the next claim, and, before that, by
/// the job's state: that revocations move the epoch as well is for the answer,
/// which tells the worker why. Likewise a job that has nothing left has ended by
/// its counts before anybody asks for its completion: that this asks for the
/// version is for vectors that come and go by hand.
#[test]
fn what_is_bolted_twice_holds_by_one() {
    for flaw in [
        &[Flaw::RevocationKeepsEpoch],
        &[Flaw::CompleteWithoutVersion],
    ] {
        exhaust(Protocol {
            flaws: Flaws(flaw),
            steers: true,
            ..BOTH
        });
    }
}
