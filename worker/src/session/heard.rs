//! What follows from what is heard of the stream.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use tracing::{debug, info, warn};
use weir_embedder::Profile;

use super::{
    DRAINING, Session,
    held::{Breach, Withdrawn},
    link::Heard,
};
use crate::{
    coordinator::{Event, Opening, Terms},
    part::{self, End, LeaseId, Part},
    worker::Model,
};

/// After how many lease durations without a stream what is held is given up. No clock here
/// decides whether a lease is lost; this only bounds how long work is held on to that is
/// most likely done elsewhere.
const GIVE_UP_LEASES: u32 = 3;

impl Session {
    pub(super) fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Due => self.link.open(self.opening()),
            Heard::Opened(terms) => self.opened(terms),
            Heard::NotOpened(error) => self.not_opened(&error),
            Heard::Said(event) => {
                if let Err(breach) = self.said(event) {
                    self.link.close();
                    self.broke(&breach.to_string());
                }
            }
            Heard::Over(None) if self.drain.is_some() => {
                debug!("The coordinator has ended the session.");
            }
            Heard::Over(None) => self.broke("the coordinator ended the session"),
            Heard::Over(Some(error)) => self.broke(&error),
        }
    }

    fn opening(&self) -> Opening {
        let models = self.worker.models.iter().map(|model| {
            let Profile {
                name, batch_size, ..
            } = &model.profile;
            (name.clone(), part::batch_size(*batch_size))
        });
        Opening {
            worker_id: self.worker.config.worker_id.clone(),
            models: models.collect(),
            held: self.held.leases(),
        }
    }

    fn opened(&mut self, terms: Terms) {
        self.held.begin();
        for told in &mut self.told {
            told.mark_changed();
        }
        if let Some(drain) = &mut self.drain {
            drain.is_told = false;
        }
        self.heartbeat_at = Instant::now() + terms.heartbeat_interval;
        self.lost_at = None;
        self.worker.obstacle.send_replace(None);
        if self.terms.replace(terms).is_none() {
            info!("The session is open.");
            self.warn_of_short_lease(terms.lease_duration);
        } else {
            info!("The session is open again.");
        }
        // Nothing is heard of the others any more.
        let held = self.held.lease_ids();
        let reason = "the session broke while nothing of it was here";
        self.leases.end_all_but(&held, End::Lost, reason);
    }

    fn not_opened(&self, error: &str) {
        self.worker.stream_failures.increment(1);
        let before = self.worker.obstacle.send_replace(Some(error.to_owned()));
        // Each change is said once.
        if before.as_deref() == Some(error) {
            debug!(error, "Still no session.");
            return;
        }
        let coordinator = &self.worker.config.coordinator;
        warn!(%coordinator, error, "Cannot open a session; trying again until it works.");
    }

    /// The stream is over before the session was.
    fn broke(&mut self, error: &str) {
        self.worker.stream_failures.increment(1);
        warn!(error, "The session broke; opening it again.");
        let lease_duration = self.terms.map(|terms| terms.lease_duration);
        self.lost_at = lease_duration.map(|duration| Instant::now() + duration * GIVE_UP_LEASES);
    }

    /// Gives up what is held.
    pub(super) fn lose_all(&mut self) {
        self.lost_at = None;
        for lease in self.held.lease_ids() {
            let withdrawn = self.held.end(lease);
            self.withdraw(withdrawn);
        }
        let obstacle = self.worker.obstacle.borrow().clone();
        let reason = obstacle.unwrap_or_else(|| "the stream could not be opened again".to_owned());
        self.leases
            .end_all_but(&BTreeSet::new(), End::Unreachable, &reason);
        self.link.reconsider();
    }

    fn said(&mut self, event: Event) -> Result<(), Breach> {
        match event {
            Event::Batch { model, parts } => {
                let (place, parts) = self.held.receive(&model, parts)?;
                self.embed(place, parts);
            }
            Event::Acks(acks) => {
                for (seq, late) in acks {
                    self.acknowledged(seq, late);
                }
            }
            Event::Ended(lease, end, reason) => {
                let withdrawn = self.held.end(lease);
                self.withdraw(withdrawn);
                let reason = match end {
                    End::Released => self.why_released(lease),
                    _ => reason,
                };
                self.leases.end(lease, end, &reason);
            }
        }
        Ok(())
    }

    /// The result of a part is in the database, but for so many chunks of it.
    fn acknowledged(&mut self, seq: i64, late: usize) {
        let Some((lease, chunks)) = self.held.acknowledge(seq) else {
            debug!(seq, "An ack came for a batch without a result.");
            return;
        };
        self.leases.persisted(lease, chunks.saturating_sub(late));
        debug!(seq, late, "A batch is persisted.");
    }

    fn embed(&mut self, place: usize, parts: Vec<Arc<Part>>) {
        let traced = parts.into_iter().map(|part| {
            let trace = self.leases.received(place, &part);
            (part, Some(trace))
        });
        let traced = traced.collect();
        let endpoint = &self.worker.models[place].endpoint;
        endpoint.ask(traced);
        if self.drain.as_ref().is_some_and(|drain| drain.is_over) {
            endpoint.give_back(DRAINING);
        }
    }

    fn withdraw(&self, withdrawn: Withdrawn) {
        let mut by_model: BTreeMap<usize, Vec<Arc<Part>>> = BTreeMap::new();
        for (place, part) in withdrawn {
            by_model.entry(place).or_default().push(part);
        }
        for (place, parts) in by_model {
            self.worker.models[place].endpoint.withdraw(&parts);
        }
    }

    fn why_released(&self, lease: LeaseId) -> String {
        if self.drain.is_some() {
            return DRAINING.to_owned();
        }
        let model = self.leases.model(lease).map(|it| &self.worker.models[it]);
        let ailment = model.and_then(|it| it.endpoint.health.ailment());
        ailment.unwrap_or_else(|| "the embedder was down".to_owned())
    }

    /// The worker learns the lease duration with its first session.
    fn warn_of_short_lease(&self, lease_duration: Duration) {
        for Model { profile, .. } in &self.worker.models {
            if profile.timeout >= lease_duration {
                warn!(
                    model = profile.name,
                    embed_timeout_ms = profile.timeout.as_millis(),
                    lease_ms = lease_duration.as_millis(),
                    "The worker's embed_timeout (WEIR_EMBED_TIMEOUT) is not below the coordinator's \
                     lease_duration (WEIR_LEASE_DURATION): if heartbeats fail during one long call, \
                     its job is given to another worker. Lower the first or raise the second."
                );
            }
        }
    }
}
