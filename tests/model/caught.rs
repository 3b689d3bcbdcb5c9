//! Each flaw breaks the law that it is there to break.

use crate::{
    flaws::{Flaw, Flaws},
    laws,
    protocols::{MISHAPS, THREE_CHUNKS, TWO_JOBS, VERDICTS, WRITES},
    search::assert_breaks,
    step::Protocol,
};

macro_rules! flaws {
    ($($name:ident: $flaw:ident in $protocol:expr => $law:expr;)*) => {$(
        #[test]
        fn $name() {
            let protocol = Protocol { flaws: Flaws(&[Flaw::$flaw]), ..$protocol };
            assert_breaks(protocol, $law);
        }
    )*};
}

flaws! {
    upsert_without_epoch_is_caught: UpsertWithoutEpoch in MISHAPS => laws::FENCED;
    upsert_in_any_state_is_caught: UpsertInAnyState in MISHAPS => laws::FENCED;
    renew_without_epoch_is_caught: RenewWithoutEpoch in MISHAPS => laws::FENCED;
    hand_back_without_epoch_is_caught: HandBackWithoutEpoch in MISHAPS => laws::FENCED;
    attempt_as_fence_has_two_holders: AttemptAsFence in MISHAPS => laws::ONE_HOLDER;
    attempt_as_fence_lets_stale_writes_in: AttemptAsFence in MISHAPS => laws::FENCED;
    attempt_as_fence_falls: AttemptAsFence in MISHAPS => laws::EPOCH;
    claim_keeps_epoch_is_caught: ClaimKeepsEpoch in MISHAPS => laws::FENCED;
    upsert_without_hash_is_caught: UpsertWithoutHash in WRITES => laws::MATCHES;
    upsert_without_locks_is_caught: UpsertWithoutLocks in WRITES => laws::MATCHES;
    deletion_leaves_vectors_is_caught: DeletionLeavesVectors in WRITES => laws::MATCHES;
    no_version_is_caught: NoVersion in WRITES => laws::MATCHES;
    epoch_as_version_is_caught: EpochAsVersion in WRITES => laws::MATCHES;
    deletion_unversioned_is_caught: DeletionUnversioned in WRITES => laws::MATCHES;
    deletion_unversioned_blames_the_worker: DeletionUnversioned in WRITES => laws::HONEST;
    results_unversioned_have_two_verdicts: ResultsUnversioned in VERDICTS => laws::MATCHES;
    results_unversioned_leave_work: ResultsUnversioned in VERDICTS => laws::COVERED;
    write_ends_jobs_is_caught: WriteEndsJobs in WRITES => laws::KEPT;
    total_not_raised_is_caught: TotalNotRaised in WRITES => laws::COUNTED;
    total_not_raised_ends_too_early: TotalNotRaised in WRITES => laws::COVERED;
    done_is_taken_off_is_caught: DoneIsTakenOff in THREE_CHUNKS => laws::COUNTED;
    new_job_overlaps_is_caught: NewJobOverlaps in TWO_JOBS => laws::APART;
    left_out_is_done_is_caught: LeftOutIsDone in WRITES => laws::COVERED;
    counts_twice_is_caught: CountsTwice in THREE_CHUNKS => laws::COUNTED;
    complete_unasked_is_caught: CompleteUnasked in MISHAPS => laws::COVERED;
    ack_before_commit_is_caught: AckBeforeCommit in MISHAPS => laws::ONCE;
    hand_out_from_the_start_is_caught: HandOutFromTheStart in MISHAPS => laws::ONCE;
    reopen_forgets_held_is_caught: ReopenForgetsHeld in MISHAPS => laws::ONCE;
    orphan_takes_any_lease_is_caught: OrphanTakesAnyLease in MISHAPS => laws::ORPHAN;
    orphan_by_renewal_alone_is_caught: OrphanByRenewalAlone in MISHAPS => laws::ORPHAN;
    progress_is_charged_is_caught: ProgressIsCharged in MISHAPS => laws::BLAME;
    lost_claim_is_charged_is_caught: LostClaimIsCharged in MISHAPS => laws::BLAME;
}
