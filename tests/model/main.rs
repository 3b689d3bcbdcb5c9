//! The lease protocol as a model: every state that it can reach within small
//! bounds is looked at, and the laws hold in each.
//!
//! **What is modelled.** One source of one or two chunks; the rows of its jobs
//! and vectors, with the store's statements as atomic steps (`database.rs`, `job.rs`); two
//! workers, two coordinators that remember nothing but their open streams, a
//! client that changes and deletes texts, and the rescuer (`system.rs`, `step.rs`). Requests
//! once sent stay under way for good, so each may arrive late, often, out of
//! order or never, at either coordinator; answers may be lost. Workers may stop
//! for any time at any point: a step that could come need not.
//!
//! **Bounds.** So that there is an end, a history has a limited number of
//! mishaps (a crash, a pause past the lease, a broken stream, a coordinator's
//! restart, a lost answer, a job handed back, a change of the content): all
//! combinations of so many, at all moments. What follows from a mishap is free.
//!
//! **Left out.** Time: a lease that may expire does so at any moment, or never,
//! and a retry waits for nothing. The models' names, dimensions, rejections,
//! several jobs side by side, and batches of more than one chunk. A worker is
//! taken to embed at once and to send late, which is the same to all others. A
//! worker comes back to a coordinator only after that one has noticed that their
//! last stream broke.

#![expect(
    clippy::panic,
    reason = "what the tests share fails the test that uses it"
)]

mod database;
mod flaws;
mod job;
mod laws;
mod search;
mod step;
mod system;

use crate::{
    flaws::{Flaw, Flaws},
    search::{assert_breaks, dead_ends, exhaust},
    step::Protocol,
};

const SOUND: Protocol = Protocol {
    flaws: Flaws(&[]),
    chunks: 2,
    mishaps: 2,
};

fn assert_flaw(flaws: &'static [Flaw], law: &'static str) {
    let protocol = Protocol {
        flaws: Flaws(flaws),
        ..SOUND
    };
    assert_breaks(protocol, law);
}

#[test]
fn every_law_holds_whatever_two_mishaps_two_chunks_meet() {
    let states = exhaust(SOUND);
    assert!(states > 400_000, "{states} states");
}

#[test]
fn every_law_holds_whatever_three_mishaps_one_chunk_meets() {
    let states = exhaust(Protocol {
        chunks: 1,
        mishaps: 3,
        ..SOUND
    });
    assert!(states > 500_000, "{states} states");
}

#[test]
fn from_every_state_the_work_can_still_be_done() {
    for (chunks, mishaps, least) in [(1, 2, 15_000), (2, 1, 4_000)] {
        let (states, dead) = dead_ends(&Protocol {
            chunks,
            mishaps,
            ..SOUND
        });
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
        chunks: 1,
        mishaps: 1,
    });
    assert!(!dead.is_empty());
}

/// Two things keep a vector from a text that changed: the lease ends with the
/// change, and the write asks for the text's hash. Each does without the other.
/// Likewise a stale lease is refused by the epoch of the next claim, and, before
/// that, by the job's state: that revocations move the epoch as well is for the
/// answer, which tells the worker why.
#[test]
fn what_is_bolted_twice_holds_by_one() {
    for flaw in [&[Flaw::UpsertWithoutHash], &[Flaw::RevocationKeepsEpoch]] {
        exhaust(Protocol {
            flaws: Flaws(flaw),
            chunks: 1,
            ..SOUND
        });
    }
}

macro_rules! flaws {
    ($($name:ident: $flaws:expr => $law:expr;)*) => {$(
        #[test]
        fn $name() {
            use Flaw::*;
            assert_flaw(&$flaws, $law);
        }
    )*};
}

flaws! {
    upsert_without_epoch_is_caught: [UpsertWithoutEpoch] => laws::FENCED;
    upsert_in_any_state_is_caught: [UpsertInAnyState] => laws::FENCED;
    renew_without_epoch_is_caught: [RenewWithoutEpoch] => laws::FENCED;
    hand_back_without_epoch_is_caught: [HandBackWithoutEpoch] => laws::FENCED;
    attempt_as_fence_has_two_holders: [AttemptAsFence] => laws::ONE_HOLDER;
    attempt_as_fence_lets_stale_writes_in: [AttemptAsFence] => laws::FENCED;
    attempt_as_fence_falls: [AttemptAsFence] => laws::EPOCH;
    claim_keeps_epoch_is_caught: [ClaimKeepsEpoch] => laws::FENCED;
    upsert_without_locks_is_caught: [UpsertWithoutLocks] => laws::MATCHES;
    deletion_leaves_vectors_is_caught: [DeletionLeavesVectors] => laws::MATCHES;
    change_keeps_lease_is_caught: [ChangeKeepsLease] => laws::WHOLE;
    change_keeps_lease_without_hash_is_caught: [ChangeKeepsLease, UpsertWithoutHash] => laws::MATCHES;
    complete_unasked_is_caught: [CompleteUnasked] => laws::WHOLE;
    ack_before_commit_is_caught: [AckBeforeCommit] => laws::ONCE;
    hand_out_from_the_start_is_caught: [HandOutFromTheStart] => laws::ONCE;
    reopen_forgets_held_is_caught: [ReopenForgetsHeld] => laws::ONCE;
    orphan_takes_any_lease_is_caught: [OrphanTakesAnyLease] => laws::ORPHAN;
    orphan_by_renewal_alone_is_caught: [OrphanByRenewalAlone] => laws::ORPHAN;
    progress_is_charged_is_caught: [ProgressIsCharged] => laws::BLAME;
    lost_claim_is_charged_is_caught: [LostClaimIsCharged] => laws::BLAME;
}
