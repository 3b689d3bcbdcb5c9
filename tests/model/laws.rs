//! What must hold in every state, and what must be possible.

use stateright::Property;

use crate::{
    database::CHUNKS,
    job::{JobState, MAX_ATTEMPTS, Term},
    step::Protocol,
    system::{Request, System, Waiting, Worker},
};

pub(crate) const EPOCH: &str = "the epoch never falls";
pub(crate) const ONE_HOLDER: &str = "no two workers hold a lease that the database accepts";
pub(crate) const FENCED: &str = "a write is accepted only under the running lease";
pub(crate) const MATCHES: &str =
    "a vector or rejection matches its chunk's text, of which it is the only one";
pub(crate) const COVERED: &str = "what is pending belongs to a job that is not settled";
pub(crate) const APART: &str = "open jobs do not overlap";
pub(crate) const COUNTED: &str = "a job counts as pending what belongs to it, and nothing else";
pub(crate) const ONCE: &str =
    "nothing persisted is handed out, and nothing twice under the same lease";
pub(crate) const KEPT: &str = "a write throws away no result but of what it changes";
pub(crate) const HONEST: &str = "no result of an honest worker is refused";
pub(crate) const BLAME: &str = "only leases that were heard of and persisted nothing are charged";
pub(crate) const ORPHAN: &str = "a lease whose stream is open is not orphaned";

pub(crate) fn properties(protocol: &Protocol) -> Vec<Property<Protocol>> {
    let mut properties = laws();
    properties.extend(reached(protocol));
    properties
}

fn laws() -> Vec<Property<Protocol>> {
    vec![
        Property::always(EPOCH, |_, system: &System| {
            let mut jobs = system.database.jobs.iter();
            jobs.all(|job| job.epoch == job.highest)
        }),
        Property::always(ONE_HOLDER, |_, system: &System| {
            let accepted = |job: usize| {
                let held = system.held().filter(move |held| held.lease.job == job);
                held.filter(|held| system.database.accepts(held.lease))
                    .count()
            };
            (0..system.database.jobs.len()).all(|job| accepted(job) <= 1)
        }),
        Property::always(FENCED, |_, system: &System| !system.database.stale_write),
        Property::always(MATCHES, |_, system: &System| {
            let database = &system.database;
            (0..CHUNKS).all(|chunk| {
                let results = [database.vectors[chunk], database.rejections[chunk]];
                let mut results = results.iter().filter(|result| result.is_some());
                let first = results.next();
                first.is_none_or(|it| *it == database.texts[chunk]) && results.next().is_none()
            })
        }),
        Property::always(COVERED, |_, system: &System| {
            let database = &system.database;
            let mut pending = (0..CHUNKS).filter(|chunk| database.is_pending(*chunk));
            pending.all(|chunk| database.owner(chunk).is_some())
        }),
        Property::always(APART, |_, system: &System| {
            let jobs = &system.database.jobs;
            let covering = |chunk| {
                jobs.iter()
                    .filter(|job| job.is_open() && job.covers(chunk))
                    .count()
            };
            (0..CHUNKS).all(|chunk| covering(chunk) <= 1)
        }),
        Property::always(COUNTED, |_, system: &System| {
            let database = &system.database;
            let mut owned = vec![0; database.jobs.len()];
            for chunk in (0..CHUNKS).filter(|chunk| database.is_pending(*chunk)) {
                if let Some(owner) = database.owner(chunk) {
                    owned[owner] += 1;
                }
            }
            let mut jobs = database.jobs.iter().zip(owned);
            jobs.all(|(job, owned)| {
                !job.is_unsettled() || job.total == job.done + job.rejected + owned
            })
        }),
        Property::always(ONCE, |_, system: &System| !system.repeated),
        Property::always(KEPT, |_, system: &System| !system.wasted),
        Property::always(HONEST, |_, system: &System| !system.database.refused),
        Property::always(BLAME, |_, system: &System| {
            let mut jobs = system.database.jobs.iter();
            jobs.all(|job| job.attempt <= job.idle)
        }),
        Property::always(ORPHAN, |_, system: &System| {
            let in_grace = |job: usize| system.database.jobs[job].running.term == Term::Grace;
            let mut held = system.held().filter(|held| held.stream.is_some());
            !held.any(|held| system.database.accepts(held.lease) && in_grace(held.lease.job))
        }),
    ]
}

/// What the model must be able to reach, for it would prove nothing otherwise.
fn reached(protocol: &Protocol) -> Vec<Property<Protocol>> {
    let budget = protocol.budget;
    let mut reached = vec![Property::sometimes(
        "everything is embedded after all that happened",
        |_, system: &System| {
            let left = system.left;
            left.mishaps == 0 && left.writes == 0 && system.is_done()
        },
    )];
    if budget.mishaps >= MAX_ATTEMPTS {
        reached.push(Property::sometimes(
            "a job fails when its tries are used up",
            |_, system: &System| {
                let mut jobs = system.database.jobs.iter();
                jobs.any(|job| job.state == JobState::Ended && job.attempt == MAX_ATTEMPTS)
            },
        ));
    }
    if budget.mishaps > 0 {
        reached.push(Property::sometimes(
            "a claim's answer arrives too late",
            |_, system: &System| {
                system.workers.iter().any(|worker| {
                    matches!(worker, Worker::Claiming(lease) if !system.database.accepts(*lease))
                })
            },
        ));
    }
    if budget.mishaps > 0 && protocol.workers > 1 {
        reached.push(Property::sometimes(
            "a paused worker still sends while another works",
            |_, system: &System| {
                let jobs = &system.database.jobs;
                let late = |request: &Request| match request {
                    Request::Upsert(lease, _) => {
                        let job = &jobs[lease.job];
                        job.state == JobState::Running && lease.claim < job.claims
                    }
                    _ => false,
                };
                system.held().count() == system.workers.len() && system.network.iter().any(late)
            },
        ));
    }
    if budget.mishaps > 0 && protocol.coordinators > 1 {
        reached.push(Property::sometimes(
            "two coordinators serve one lease for a while",
            |_, system: &System| {
                let mut streams = system.streams.iter();
                streams.any(|(at, lease)| {
                    !system.is_live(*at, *lease) && system.is_live(1 - at, *lease)
                })
            },
        ));
    }
    if budget.writes > 0 {
        reached.push(Property::sometimes(
            "a result arrives of a text that is another by now",
            |_, system: &System| {
                let database = &system.database;
                system.network.iter().any(|request| match request {
                    Request::Upsert(lease, outcome) => {
                        database.accepts(*lease)
                            && database.texts[outcome.chunk] != Some(outcome.version)
                    }
                    _ => false,
                })
            },
        ));
        if budget.waits > 0 {
            reached.push(Property::sometimes(
                "a write overtakes a statement whose lease is still held",
                |_, system: &System| {
                    let database = &system.database;
                    system
                        .waiting
                        .is_some_and(|Waiting { request, .. }| match request {
                            Request::Upsert(lease, outcome) => {
                                database.accepts(lease)
                                    && database.texts[outcome.chunk] != Some(outcome.version)
                            }
                            _ => false,
                        })
                },
            ));
        }
    }
    reached
}
