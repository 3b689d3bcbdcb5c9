//! What must hold in every state, and what must be possible.

use stateright::Property;

use crate::{
    database::CHUNKS,
    job::{JobState, MAX_ATTEMPTS, Term},
    step::Protocol,
    system::{Request, System, Worker},
};

pub(crate) const EPOCH: &str = "the epoch never falls";
pub(crate) const ONE_HOLDER: &str = "no two workers hold a lease that the database accepts";
pub(crate) const FENCED: &str = "a write is accepted only under the running lease";
pub(crate) const MATCHES: &str = "a vector matches its chunk's text, and no deleted item has one";
pub(crate) const WHOLE: &str = "a job that succeeded left nothing pending";
pub(crate) const COVERED: &str =
    "what is pending has an open or a failed job, and only one is open";
pub(crate) const ONCE: &str =
    "nothing persisted is handed out, and nothing twice under the same lease";
pub(crate) const BLAME: &str = "only leases that were heard of and persisted nothing are charged";
pub(crate) const ORPHAN: &str = "a lease whose stream is open is not orphaned";

pub(crate) fn properties() -> Vec<Property<Protocol>> {
    vec![
        Property::always(EPOCH, |_, system: &System| {
            let mut jobs = system.database.jobs.iter();
            jobs.all(|job| job.epoch == job.highest)
        }),
        Property::always(ONE_HOLDER, |_, system: &System| {
            let accepted = system
                .held()
                .filter(|held| system.database.accepts(held.lease));
            accepted.count() <= 1
        }),
        Property::always(FENCED, |_, system: &System| !system.database.stale_write),
        Property::always(MATCHES, |_, system: &System| {
            let database = &system.database;
            (0..CHUNKS).all(|chunk| {
                database.vectors[chunk].is_none()
                    || database.vectors[chunk] == database.texts[chunk]
            })
        }),
        Property::always(WHOLE, |_, system: &System| {
            system.database.newest().state != JobState::Succeeded || system.database.pending() == 0
        }),
        Property::always(COVERED, |_, system: &System| {
            let database = &system.database;
            let open = database.jobs.iter().filter(|job| job.is_open()).count();
            let failed = database.newest().state == JobState::Failed;
            open <= 1 && (database.pending() == 0 || open == 1 || failed)
        }),
        Property::always(ONCE, |_, system: &System| !system.repeated),
        Property::always(BLAME, |_, system: &System| {
            let mut jobs = system.database.jobs.iter();
            jobs.all(|job| job.attempt <= job.idle)
        }),
        Property::always(ORPHAN, |_, system: &System| {
            let job = system.database.newest();
            job.running.term != Term::Grace
                || !system
                    .held()
                    .any(|held| held.stream.is_some() && system.database.accepts(held.lease))
        }),
        // The model would prove nothing if these were out of its reach.
        Property::sometimes(
            "a job succeeds after all the mishaps",
            |_, system: &System| {
                system.mishaps == 0 && system.database.newest().state == JobState::Succeeded
            },
        ),
        Property::sometimes(
            "a job fails when its tries are used up",
            |_, system: &System| {
                let job = system.database.newest();
                job.state == JobState::Failed && job.attempt == MAX_ATTEMPTS
            },
        ),
        Property::sometimes(
            "a paused worker still sends while another works",
            |_, system: &System| {
                let database = &system.database;
                let late = |request: &Request| match request {
                    Request::Upsert(lease, _) => {
                        lease.job + 1 == database.jobs.len()
                            && lease.claim < database.newest().claims
                    }
                    _ => false,
                };
                system.held().count() == system.workers.len()
                    && database.newest().state == JobState::Running
                    && system.network.iter().any(late)
            },
        ),
        Property::sometimes(
            "two coordinators serve one lease for a while",
            |_, system: &System| {
                let mut streams = system.streams.iter();
                streams.any(|(at, lease)| {
                    !system.is_live(*at, *lease) && system.is_live(1 - at, *lease)
                })
            },
        ),
        Property::sometimes("a claim's answer arrives too late", |_, system: &System| {
            system.workers.iter().any(|worker| {
                matches!(worker, Worker::Claiming(lease) if !system.database.accepts(*lease))
            })
        }),
    ]
}
