//! Deliberate mistakes. The model with one of them must break a law: that shows
//! that its properties can fail, and what each part of the protocol is for.

/// A mistake in the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// An upsert asks only for the job's state.
    UpsertWithoutEpoch,
    /// An upsert asks only for the epoch.
    UpsertInAnyState,
    /// An upsert does not ask what text a vector was computed from.
    UpsertWithoutHash,
    /// A renewal asks only for the job's state.
    RenewWithoutEpoch,
    /// A release or fail asks only for the job's state.
    HandBackWithoutEpoch,
    /// The count of charged tries is what a lease is known by.
    AttemptAsFence,
    /// Only revocations move the epoch.
    ClaimKeepsEpoch,
    /// Only claims move the epoch.
    RevocationKeepsEpoch,
    /// An upsert checks first and writes later, with no row locked in between.
    UpsertWithoutLocks,
    /// A statement that waited for the job's row does not ask whether the chunks
    /// have changed since it read them.
    NoVersion,
    /// It asks for the epoch alone.
    EpochAsVersion,
    /// It does not ask for what other results of the job were written.
    ResultsUnversioned,
    /// A deletion does not count as a change.
    DeletionUnversioned,
    /// Only results ask for the version, not a completion.
    CompleteWithoutVersion,
    /// A write ends the jobs that are open, and plans all that is pending anew.
    WriteEndsJobs,
    /// A chunk that a write makes pending is not added to its job.
    TotalNotRaised,
    /// A chunk that goes is taken off its job whether or not it was pending there.
    DoneIsTakenOff,
    /// The job of what no open one covers reaches over what others cover.
    NewJobOverlaps,
    /// A chunk whose result was left out counts as done.
    LeftOutIsDone,
    /// A result counts whether or not it is there already.
    CountsTwice,
    /// A stream lists what is pending only when it is opened.
    ListsOnce,
    /// Deleted items keep their vectors.
    DeletionLeavesVectors,
    /// A worker is told that its result is persisted before it is.
    AckBeforeCommit,
    /// Every lease begins with the first chunk.
    HandOutFromTheStart,
    /// A reopened stream is not told what the worker holds.
    ReopenForgetsHeld,
    /// A job ends as succeeded because its worker says so.
    CompleteUnasked,
    /// A broken stream shortens the lease whoever renewed it since.
    OrphanTakesAnyLease,
    /// A broken stream shortens the lease when it renewed it last, also when the
    /// worker has opened another since: what was read from the old one late
    /// renewed it.
    OrphanByRenewalAlone,
    /// A lease that expires is charged also when it persisted something.
    ProgressIsCharged,
    /// A lease that expires is charged also when no worker ever showed up with it.
    LostClaimIsCharged,
    /// Nobody takes back expired leases.
    NoRescuer,
}

/// The mistakes of one variant of the protocol.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flaws(pub(crate) &'static [Flaw]);

impl Flaws {
    pub(crate) fn has(self, flaw: Flaw) -> bool {
        self.0.contains(&flaw)
    }
}
