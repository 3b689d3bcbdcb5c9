//! What a session holds and has credit for. Pure: no clock, no network, no
//! runtime.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weir_proto::limits::{MAX_CREDIT, MAX_WORKER_MESSAGE_BYTES};

use crate::part::{ChunkKey, LeaseId, Part, PartResult};

/// From so many bytes of texts on nothing more is read, and from so many bytes of
/// results that are not acknowledged on no credit is granted.
const MOST_BYTES: usize = 2 * MAX_WORKER_MESSAGE_BYTES;
/// What a message takes beside its parts.
const MESSAGE_FRAME_BYTES: usize = 64;

/// What the coordinator did that the contract rules out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Breach {
    #[error("the coordinator sent {sent} chunks of {model:?} for a credit of {credit}")]
    OverCredit {
        model: String,
        sent: usize,
        credit: usize,
    },
    #[error("the coordinator sent part {seq}, which is here already")]
    Twice { seq: i64 },
    #[error("the coordinator sent part {seq} without chunks")]
    Empty { seq: i64 },
    #[error("the coordinator sent a batch of {model:?}, which this worker does not embed")]
    UnknownModel { model: String },
}

/// The parts that were received and whose results are not acknowledged, and the
/// credit of each model: never more than [`MAX_CREDIT`] chunks together.
#[derive(Debug)]
pub(super) struct Held {
    models: Vec<Model>,
    parts: BTreeMap<i64, HeldPart>,
    /// Those whose results were not sent on this stream.
    unsent: BTreeSet<i64>,
    text_bytes: usize,
    result_bytes: usize,
}

#[derive(Debug)]
struct Model {
    name: String,
    credit: usize,
    /// Chunks of the parts held.
    chunks: usize,
}

#[derive(Debug)]
struct HeldPart {
    model: usize,
    lease: LeaseId,
    chunks: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    Embedding(Arc<Part>),
    Answered(PartResult),
}

/// Parts that are let go of before the endpoint has answered them, with the place
/// of their model.
pub(super) type Withdrawn = Vec<(usize, Arc<Part>)>;

impl Held {
    /// Nothing, of models of these names.
    pub(super) fn new(models: impl IntoIterator<Item = String>) -> Self {
        let model = |name| Model {
            name,
            credit: 0,
            chunks: 0,
        };
        Self {
            models: models.into_iter().map(model).collect(),
            parts: BTreeMap::new(),
            unsent: BTreeSet::new(),
            text_bytes: 0,
            result_bytes: 0,
        }
    }

    /// Whether nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Whether nothing is being embedded.
    pub(super) fn is_answered(&self) -> bool {
        let mut parts = self.parts.values();
        parts.all(|part| matches!(part.state, State::Answered(_)))
    }

    /// Whether more texts may be read.
    pub(super) fn has_room(&self) -> bool {
        self.text_bytes < MOST_BYTES
    }

    /// A session begins: there is no credit, and no result was sent on it.
    pub(super) fn begin(&mut self) {
        for model in &mut self.models {
            model.credit = 0;
        }
        let answered = self.parts.iter();
        let answered = answered.filter(|(_, part)| matches!(part.state, State::Answered(_)));
        self.unsent = answered.map(|(seq, _)| *seq).collect();
    }

    /// Grants as much credit as is missing for there to be `room` chunks more of a
    /// model, and no more than the model's share. Returns how much, if any.
    pub(super) fn grant(&mut self, model: usize, room: usize) -> Option<usize> {
        if self.result_bytes >= MOST_BYTES {
            return None;
        }
        let share = MAX_CREDIT as usize / self.models.len().max(1);
        let model = self.models.get_mut(model)?;
        let left = share.saturating_sub(model.credit + model.chunks);
        let chunks = room.saturating_sub(model.credit).min(left);
        model.credit += chunks;
        (chunks > 0).then_some(chunks)
    }

    /// Takes a batch in, all of it or nothing. Returns the place of its model, and
    /// the parts to embed.
    pub(super) fn receive(
        &mut self,
        model: &str,
        parts: Vec<Part>,
    ) -> Result<(usize, Vec<Arc<Part>>), Breach> {
        let place = self.models.iter().position(|it| it.name == model);
        let place = place.ok_or_else(|| Breach::UnknownModel {
            model: model.to_owned(),
        })?;
        let mut new = BTreeSet::new();
        for Part { seq, chunks, .. } in &parts {
            let seq = *seq;
            if chunks.is_empty() {
                return Err(Breach::Empty { seq });
            }
            if self.parts.contains_key(&seq) || !new.insert(seq) {
                return Err(Breach::Twice { seq });
            }
        }
        let sent = parts.iter().map(|part| part.chunks.len()).sum();
        let Model { credit, chunks, .. } = &mut self.models[place];
        if sent > *credit {
            return Err(Breach::OverCredit {
                model: model.to_owned(),
                sent,
                credit: *credit,
            });
        }
        *credit -= sent;
        *chunks += sent;
        let parts: Vec<Arc<Part>> = parts.into_iter().map(Arc::new).collect();
        for part in &parts {
            self.text_bytes += part.text_bytes();
            let held = HeldPart {
                model: place,
                lease: part.lease,
                chunks: part.chunks.len(),
                state: State::Embedding(Arc::clone(part)),
            };
            self.parts.insert(part.seq, held);
        }
        Ok((place, parts))
    }

    /// Keeps what became of a part until it is acknowledged. Returns whether it
    /// was waited for.
    pub(super) fn answer(&mut self, part: &Arc<Part>, result: PartResult) -> bool {
        let Some(held) = self.parts.get_mut(&part.seq) else {
            return false;
        };
        // Another part may have the number by now.
        if !matches!(&held.state, State::Embedding(it) if Arc::ptr_eq(it, part)) {
            return false;
        }
        self.text_bytes -= part.text_bytes();
        self.result_bytes += result.wire_bytes();
        held.state = State::Answered(result);
        self.unsent.insert(part.seq);
        true
    }

    /// The results to send next, as many as fit a message; none when all are sent.
    pub(super) fn next_results(&mut self) -> Vec<&PartResult> {
        let mut left = MAX_WORKER_MESSAGE_BYTES - MESSAGE_FRAME_BYTES;
        let mut seqs = Vec::new();
        for seq in &self.unsent {
            let Some(State::Answered(result)) = self.parts.get(seq).map(|part| &part.state) else {
                continue;
            };
            let bytes = result.wire_bytes();
            if bytes > left && !seqs.is_empty() {
                break;
            }
            left = left.saturating_sub(bytes);
            seqs.push(*seq);
        }
        let mut results = Vec::with_capacity(seqs.len());
        for seq in seqs {
            self.unsent.remove(&seq);
            if let Some(State::Answered(result)) = self.parts.get(&seq).map(|part| &part.state) {
                results.push(result);
            }
        }
        results
    }

    /// Lets go of a part whose result is committed. Returns its lease, and how
    /// many chunks had an outcome in it; `None` when no such result was sent.
    pub(super) fn acknowledge(&mut self, seq: i64) -> Option<(LeaseId, usize)> {
        let State::Answered(result) = &self.parts.get(&seq)?.state else {
            return None;
        };
        if self.unsent.contains(&seq) {
            return None;
        }
        let outcomes = result.outcomes();
        let lease = self.parts[&seq].lease;
        self.let_go(seq);
        Some((lease, outcomes))
    }

    /// Lets go of all parts of a lease.
    pub(super) fn end(&mut self, lease: LeaseId) -> Withdrawn {
        let of_lease = self.parts.iter().filter(|(_, part)| part.lease == lease);
        let seqs: Vec<i64> = of_lease.map(|(seq, _)| *seq).collect();
        let withdrawn = seqs.into_iter().filter_map(|seq| self.let_go(seq));
        withdrawn.collect()
    }

    /// Lets go of a part. Returns it where it was not answered.
    fn let_go(&mut self, seq: i64) -> Option<(usize, Arc<Part>)> {
        self.unsent.remove(&seq);
        let held = self.parts.remove(&seq)?;
        self.models[held.model].chunks -= held.chunks;
        match held.state {
            State::Embedding(part) => {
                self.text_bytes -= part.text_bytes();
                Some((held.model, part))
            }
            State::Answered(result) => {
                self.result_bytes -= result.wire_bytes();
                None
            }
        }
    }

    /// The leases of which parts are held.
    pub(super) fn lease_ids(&self) -> BTreeSet<LeaseId> {
        self.parts.values().map(|part| part.lease).collect()
    }

    /// The leases of which parts are held, each with these and the chunks they
    /// came with, for another session.
    pub(super) fn leases(&self) -> BTreeMap<LeaseId, Vec<(i64, Vec<ChunkKey>)>> {
        let mut leases: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (seq, part) in &self.parts {
            let keys = match &part.state {
                State::Embedding(part) => part.chunks.iter().map(|it| it.key.clone()).collect(),
                State::Answered(result) => result.keys().cloned().collect(),
            };
            leases.entry(part.lease).or_default().push((*seq, keys));
        }
        leases
    }
}

#[cfg(test)]
mod tests;
