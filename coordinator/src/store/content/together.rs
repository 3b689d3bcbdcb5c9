//! Patches of one source that come together are done together. Whoever has to
//! wait for its turn leaves what it wants, and whoever has the turn does all that
//! was left: one transaction for all of them.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::oneshot, time::Instant};

use super::{Change, ContentWrite, PAGE_ITEMS, SourceWrite, Written, are_few};
use crate::{
    job::plan::PlannedItem,
    store::{
        Store, StoreError,
        patience::waited_for,
        rows::{Job, SourceKey},
    },
    turns::Turn,
};

/// Most that a patch may hold which is left to others: what waits is held twice.
const SMALL_ITEMS: usize = 100;
const SMALL_BYTES: usize = 64 << 10;

/// A patch that waits, and where its answer goes.
#[derive(Debug)]
struct Left {
    patch: Arc<Patch>,
    answer: oneshot::Sender<Written>,
}

#[derive(Debug)]
struct Patch {
    write: SourceWrite,
    upsert: Vec<PlannedItem>,
    delete: Vec<String>,
}

impl Patch {
    fn item_ids(&self) -> impl Iterator<Item = &str> {
        let upserted = self.upsert.iter().map(|item| item.item_id.as_str());
        upserted.chain(self.delete.iter().map(String::as_str))
    }

    /// What of all that was done together is this one's.
    fn own(&self, done: &Written, told: &Told) -> Written {
        let mut change = Change::default();
        for item in &self.upsert {
            let outcome = told.items.get(&item.item_id).copied().unwrap_or_default();
            match outcome.became {
                Became::Added => change.items_added += 1,
                Became::Changed => change.items_changed += 1,
                Became::Unchanged | Became::Deleted => change.items_unchanged += 1,
            }
            change.chunks_pending += i64::from(outcome.written);
        }
        let is_gone = |item_id: &&String| {
            let outcome = told.items.get(*item_id);
            outcome.is_some_and(|it| it.became == Became::Deleted)
        };
        change.items_deleted = self.delete.iter().filter(is_gone).count() as i64;
        let embeds = |job: &&Job| {
            let range = job.first_item_id.as_str()..=job.last_item_id.as_str();
            let mut ids = self.upsert.iter().map(|item| item.item_id.as_str());
            change.chunks_pending > 0 && ids.any(|it| range.contains(&it))
        };
        Written {
            change,
            changed: done.changed,
            source: done.source.clone(),
            jobs: done.jobs.iter().filter(embeds).cloned().collect(),
        }
    }
}

/// What became of each item of a write.
#[derive(Debug, Default)]
pub(super) struct Told {
    items: HashMap<String, Outcome>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Outcome {
    became: Became,
    /// Chunks of it that were written.
    written: i32,
}

/// What an item was made by a write.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Became {
    #[default]
    Unchanged,
    Added,
    Changed,
    Deleted,
}

impl Told {
    pub(super) fn became(&mut self, item_id: &str, became: Became) {
        self.items.entry(item_id.to_owned()).or_default().became = became;
    }

    pub(super) fn wrote(&mut self, item_id: &str, chunks: i32) {
        self.items.entry(item_id.to_owned()).or_default().written += chunks;
    }
}

/// Patches that wait, by source.
#[derive(Debug, Clone, Default)]
pub(in crate::store) struct Patches(Arc<Mutex<HashMap<SourceKey, VecDeque<Left>>>>);

/// A patch that was left. It is taken back when this is dropped, unless somebody
/// does it by then.
struct Leave {
    patches: Patches,
    patch: Arc<Patch>,
    answer: oneshot::Receiver<Written>,
}

impl Patches {
    fn lock(&self) -> MutexGuard<'_, HashMap<SourceKey, VecDeque<Left>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, patch: Patch) -> Leave {
        let patch = Arc::new(patch);
        let (sender, answer) = oneshot::channel();
        let mut waiting = self.lock();
        let of_source = waiting.entry(patch.write.key.clone()).or_default();
        of_source.push_back(Left {
            patch: Arc::clone(&patch),
            answer: sender,
        });
        Leave {
            patches: self.clone(),
            patch,
            answer,
        }
    }

    /// Takes a patch that waits, and first of all those that can be done with it,
    /// unless it was taken.
    fn take(&self, first: &Arc<Patch>) -> Vec<Left> {
        let mut waiting = self.lock();
        let Some(of_source) = waiting.remove(&first.write.key) else {
            return Vec::new();
        };
        let (mut own, others): (Vec<Left>, Vec<Left>) = of_source
            .into_iter()
            .partition(|left| Arc::ptr_eq(&left.patch, first));
        let mut group = Group::default();
        let mut taken: Vec<Left> = Vec::new();
        let mut rest = VecDeque::new();
        for left in own.drain(..).chain(others) {
            let is_own = Arc::ptr_eq(&left.patch, first);
            if !left.answer.is_closed() && (is_own || !taken.is_empty()) && group.takes(&left.patch)
            {
                taken.push(left);
            } else {
                rest.push_back(left);
            }
        }
        if !rest.is_empty() {
            waiting.insert(first.write.key.clone(), rest);
        }
        taken
    }
}

impl Leave {
    /// Takes it back, unless somebody does it by now.
    fn take_back(&self) -> bool {
        let mut waiting = self.patches.lock();
        let key = &self.patch.write.key;
        let Some(of_source) = waiting.get_mut(key) else {
            return false;
        };
        let before = of_source.len();
        of_source.retain(|left| !Arc::ptr_eq(&left.patch, &self.patch));
        let waited = of_source.len() < before;
        if of_source.is_empty() {
            waiting.remove(key);
        }
        waited
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.take_back();
    }
}

/// What fits together: patches of different items that want the same of the jobs.
#[derive(Default)]
struct Group {
    items: HashSet<String>,
    order: Option<(i16, i32)>,
}

impl Group {
    fn takes(&mut self, patch: &Patch) -> bool {
        let order = (patch.write.priority, patch.write.max_chunks_per_job);
        let fits = self.order.is_none_or(|it| it == order)
            && self.items.len() + patch.upsert.len() + patch.delete.len() <= PAGE_ITEMS
            && patch.item_ids().all(|it| !self.items.contains(it));
        if fits {
            self.order = Some(order);
            self.items.extend(patch.item_ids().map(str::to_owned));
        }
        fits
    }
}

/// Whether a patch may be left to others: it is small, and whatever the source's
/// revision is, it is done.
fn may_be_left(write: &SourceWrite, upsert: &[PlannedItem], delete: &[String]) -> bool {
    let bytes = |item: &PlannedItem| {
        let texts = item.chunks.iter().map(|chunk| chunk.text.len());
        texts.sum::<usize>() + item.metadata.as_ref().map_or(0, String::len)
    };
    write.expected_revision.is_none()
        && write.model.is_none()
        && upsert.len() + delete.len() <= SMALL_ITEMS
        && upsert.iter().map(bytes).sum::<usize>() <= SMALL_BYTES
}

impl Store {
    /// Does a patch when its turn comes, or has it done with that of another.
    pub(super) async fn patch_in_turn(
        &self,
        write: &SourceWrite,
        upsert: &[PlannedItem],
        delete: &[String],
    ) -> Result<Written, StoreError> {
        let alone = || self.try_patch(write, upsert, delete);
        let is_free = self.turns.try_take(&write.key);
        let turn = match is_free {
            Some(turn) => turn,
            None if !may_be_left(write, upsert, delete) => {
                return self.at_source(&write.key, alone).await;
            }
            None => {
                let patch = Patch {
                    write: write.clone(),
                    upsert: upsert.to_vec(),
                    delete: delete.to_vec(),
                };
                match self.wait_together(patch).await? {
                    Waited::Done(written) => return Ok(*written),
                    Waited::Turn(turn) => turn,
                    Waited::Failed => return self.at_source(&write.key, alone).await,
                }
            }
        };
        let _turn = turn;
        let until = Instant::now() + self.pool.limit;
        self.unlocked_until(until, || waited_for(&write.key), alone)
            .await
    }

    /// Waits until a patch is done, or it is its turn and nobody else's patch can be
    /// done with it.
    async fn wait_together(&self, patch: Patch) -> Result<Waited, StoreError> {
        let key = patch.write.key.clone();
        let mut left = self.patches.leave(patch);
        let until = Instant::now() + self.pool.limit;
        let turn = tokio::select! {
            biased;
            answer = &mut left.answer => return Ok(Waited::from(answer)),
            turn = tokio::time::timeout_at(until, self.turns.take(key.clone())) => turn,
        };
        let Ok(turn) = turn else {
            if left.take_back() {
                return Err(self.still_locked(&waited_for(&key)));
            }
            // It is being done.
            return Ok(Waited::from((&mut left.answer).await));
        };
        let group = self.patches.take(&left.patch);
        match group.len() {
            // Whoever had the turn before has done it, or has failed.
            0 => {}
            1 => return Ok(Waited::Turn(turn)),
            // In a task of its own: it ends for all, though who has the turn goes away.
            _ => drop(tokio::spawn(self.clone().patch_together(turn, group))),
        }
        Ok(Waited::from((&mut left.answer).await))
    }

    /// Does some patches together, and tells each. Where that fails they are told
    /// nothing, and each is done alone.
    async fn patch_together(self, turn: Turn<SourceKey>, group: Vec<Left>) {
        let patches: Vec<&Patch> = group.iter().map(|left| &*left.patch).collect();
        let Some(first) = patches.first() else {
            return;
        };
        let mut upsert: Vec<PlannedItem> = Vec::new();
        let mut delete: Vec<&str> = Vec::new();
        for patch in &patches {
            upsert.extend_from_slice(&patch.upsert);
            delete.extend(patch.delete.iter().map(String::as_str));
        }
        upsert.sort_unstable_by(|a, b| a.item_id.cmp(&b.item_id));
        delete.sort_unstable();
        let all = || async {
            let few = are_few(&upsert, delete.len());
            let mut content = ContentWrite::begin(&self, &first.write, false, few).await?;
            content.told = Some(Told::default());
            content.patch(&upsert, &delete).await
        };
        let until = Instant::now() + self.pool.limit;
        let key = &first.write.key;
        let done = self.unlocked_until(until, || waited_for(key), all).await;
        drop(turn);
        let Ok((written, told)) = done else {
            return;
        };
        let told = told.unwrap_or_default();
        for left in group {
            let own = left.patch.own(&written, &told);
            // Who asked may be gone.
            let _ = left.answer.send(own);
        }
    }
}

/// What became of a patch that waited.
enum Waited {
    /// Somebody has done it.
    Done(Box<Written>),
    /// It has the turn, and is to be done alone.
    Turn(Turn<SourceKey>),
    /// Somebody could not do it, and it is to be done alone.
    Failed,
}

impl From<Result<Written, oneshot::error::RecvError>> for Waited {
    fn from(answer: Result<Written, oneshot::error::RecvError>) -> Self {
        answer.map_or(Self::Failed, |written| Self::Done(Box::new(written)))
    }
}
