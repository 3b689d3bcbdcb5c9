//! Writing content: the diff against what is stored, and the jobs that embed
//! the difference, in one transaction. What it costs follows what it changes.

mod create;
mod items;
mod jobs;
mod late;
mod together;

use std::{collections::BTreeSet, time::Instant};

pub(super) use self::together::Patches;
use self::{jobs::Jobs, together::Told};
use chrono::{DateTime, Utc};

use super::{
    LOOKUPS, Store, StoreError,
    database::Transaction,
    locks::{
        LockedSource, cancel_open_jobs, lock_source, lock_unsettled_jobs, locked_columns, settle,
    },
    patience::JOBS_LOCK_TIMEOUT,
    prompts::{SourcePrompts, hash_all_anew, in_force, prompt_in_force},
    quota::Quota,
    rejections::{forget, uncount, uncount_all},
    rows::{Job, SourceKey},
    sources::jobs_in,
};
use crate::job::{
    plan::{ItemRange, PlannedItem},
    state::RevokeReason,
};

/// Items that are compared and written by one set of statements.
pub(super) const PAGE_ITEMS: usize = 1_000;

/// Text that is compared and written by one set of statements, in bytes; one
/// item that alone has more is alone.
const PAGE_BYTES: usize = 8 << 20;

/// Items, and chunks of these, up to which the statements of a write are planned
/// once, as lookups; planning takes them longer than what they do. More of them are
/// planned each time, by how many they are.
const FEW: usize = 100;

/// What a write is about, besides its content.
#[derive(Debug, Clone)]
pub struct SourceWrite {
    /// The source.
    pub key: SourceKey,
    /// The model wanted; `None` keeps that of an existing source.
    pub model: Option<String>,
    /// The model of a new source where `model` is `None`.
    pub default_model: String,
    /// Priority of the jobs it queues.
    pub priority: i16,
    /// Most pending chunks in one of these.
    pub max_chunks_per_job: i32,
    /// W3C trace context of the caller.
    pub traceparent: Option<String>,
    /// The revision that the source must be at for the write to change it, 0
    /// where it must not be there; `None`: any.
    pub expected_revision: Option<i64>,
}

/// What a write changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Items that are new.
    pub items_added: i64,
    /// Items whose text or metadata changed.
    pub items_changed: i64,
    /// Items gone.
    pub items_deleted: i64,
    /// Items that were there already, the same.
    pub items_unchanged: i64,
    /// Chunks that are pending because of it: those that it wrote, all that another
    /// model has to embed, and those of cancelled jobs that it took up.
    pub chunks_pending: i64,
    /// Open jobs ended because the source has another model now.
    pub jobs_superseded: i64,
}

/// A source as a write leaves it: what it holds. What became of its chunks costs
/// more to tell than the write.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct WrittenSource {
    /// The row's id, which clients never see.
    pub id: i64,
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The embedding model.
    pub model: String,
    /// Rises with every change.
    pub revision: i64,
    /// Items in it.
    pub items_total: i64,
    /// Chunks of these.
    pub chunks_total: i64,
    /// When it was first put.
    pub created_at: DateTime<Utc>,
    /// When its content last changed.
    pub updated_at: DateTime<Utc>,
}

/// The columns of a [`WrittenSource`].
macro_rules! written_columns {
    () => {
        "id, namespace, name, model, revision, items_total, chunks_total, created_at, updated_at"
    };
}

/// A write that is done: what it changed, and who embeds that.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// What changed of its content.
    pub change: Change,
    /// Whether the source or its jobs are not what they were. Nobody is told by
    /// this transaction: all that notify commit one after the other.
    pub changed: bool,
    /// The source now.
    pub source: WrittenSource,
    /// The jobs that embed what it changed, newest first, at most
    /// [`MAX_JOBS_WITH_SOURCE`](super::sources::MAX_JOBS_WITH_SOURCE): those that it queued, and those that were there.
    pub jobs: Vec<Job>,
}

impl Store {
    /// Replaces the whole content of a source, creating it if it is new.
    /// `items` are in order of id, each once.
    pub async fn put_source(
        &self,
        write: &SourceWrite,
        items: &[PlannedItem],
    ) -> Result<Written, StoreError> {
        self.at_source(&write.key, || self.try_put(write, items))
            .await
    }

    async fn try_put(
        &self,
        write: &SourceWrite,
        items: &[PlannedItem],
    ) -> Result<Written, StoreError> {
        if let Some(written) = self.create_small(write, items).await? {
            return Ok(written);
        }
        let mut content = ContentWrite::begin(self, write, true, are_few(items, 0)).await?;
        if items.is_empty() {
            content.delete_between("", None, &[]).await?;
        }
        let mut after = "";
        let mut pages = pages(items).peekable();
        while let Some(page) = pages.next() {
            // The last page is followed by the end of the source.
            let last = page.last().filter(|_| pages.peek().is_some());
            let upto = last.map(|item| item.item_id.as_str());
            content.delete_between(after, upto, page).await?;
            content.write_items(page).await?;
            after = upto.unwrap_or(after);
        }
        content.finish().await
    }

    /// Changes some items of an existing source. `upsert` is in order of id,
    /// each once, and none of them is in `delete`.
    pub async fn patch_source(
        &self,
        write: &SourceWrite,
        upsert: &[PlannedItem],
        delete: &[String],
    ) -> Result<Written, StoreError> {
        self.patch_in_turn(write, upsert, delete).await
    }

    async fn try_patch(
        &self,
        write: &SourceWrite,
        upsert: &[PlannedItem],
        delete: &[String],
    ) -> Result<Written, StoreError> {
        let few = are_few(upsert, delete.len());
        let content = ContentWrite::begin(self, write, false, few).await?;
        let mut delete: Vec<&str> = delete.iter().map(String::as_str).collect();
        delete.sort_unstable();
        let (written, _) = content.patch(upsert, &delete).await?;
        Ok(written)
    }
}

/// Cuts items into pages.
fn pages(mut items: &[PlannedItem]) -> impl Iterator<Item = &[PlannedItem]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |item: &&PlannedItem| {
            bytes += item.chunks.iter().map(|it| it.text.len()).sum::<usize>();
            bytes <= PAGE_BYTES
        };
        let len = items.iter().take(PAGE_ITEMS).take_while(fits).count();
        let (page, rest) = items.split_at(len.max(1).min(items.len()));
        items = rest;
        (!page.is_empty()).then_some(page)
    })
}

/// Whether these items, and so many more that are deleted, are [`FEW`].
fn are_few(items: &[PlannedItem], deleted: usize) -> bool {
    let rows = items.iter().map(|item| 1 + item.chunks.len());
    rows.sum::<usize>() + deleted <= FEW
}

/// One write of a source's content, from the locks it takes to its commit.
pub(super) struct ContentWrite<'a> {
    tx: Transaction,
    quota: Quota,
    write: &'a SourceWrite,
    source: LockedSource,
    /// What its texts are embedded with.
    prompts: SourcePrompts,
    before: Before,
    /// Whether it is the whole content.
    whole: bool,
    began: Instant,
    /// What became of each item, where that is asked.
    told: Option<Told>,
    /// Running jobs whose rows it has locked.
    running: BTreeSet<i64>,
    /// The revision that the write expected, where the source is at another: it
    /// may change nothing, but what it wants may be there already.
    late: Option<i64>,
    jobs: Jobs,
    /// Most chunks of a source that moves to another model which are queued at once.
    step_chunks: i64,
    change: Change,
    /// Chunks added less chunks gone.
    chunks_delta: i64,
    /// Rejections deleted with their chunks.
    rejections_gone: i64,
}

/// What a write found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// No source: nothing is there to be deleted, and nobody works on it.
    Nothing,
    /// One with another model than the write wants: everything is pending then.
    OtherModel,
    /// One that it changes.
    Source,
}

impl<'a> ContentWrite<'a> {
    /// Takes the lock of the source. `whole` says that its whole content is
    /// written: it is created then, unless it is there; `few`, that what is written
    /// is [`FEW`].
    pub(super) async fn begin(
        store: &Store,
        write: &'a SourceWrite,
        whole: bool,
        few: bool,
    ) -> Result<Self, StoreError> {
        let mut tx = store.pool.begin().await?;
        let expected = write.expected_revision;
        let may_create = whole && expected.is_none_or(|revision| revision == 0);
        let (mut source, created) = loop {
            if may_create && let Some(source) = create_source(&mut tx, write).await? {
                let namespace = &write.key.namespace;
                store.quota.check_sources(&mut tx, namespace).await?;
                break (source, true);
            }
            match lock_source(&mut tx, &write.key).await? {
                Some(source) => break (source, false),
                None if !whole => return Err(write.key.not_found()),
                None if !may_create => return Err(write.key.not_at(expected, None)),
                // Deleted by another while this waited for its lock: it is made anew.
                None => {}
            }
        };
        has_source(&mut tx, few).await?;
        let late = expected.filter(|revision| !created && *revision != source.revision);
        let mut prompts = SourcePrompts::of(&mut tx, &source).await?;
        let new_model = write.model.as_ref().filter(|model| **model != source.model);
        let new_model = new_model.filter(|_| late.is_none());
        let mut change = Change::default();
        if let Some(model) = new_model {
            change.jobs_superseded = end_all_jobs(&mut tx, source.id, model).await?;
            prompts = change_model(&mut tx, &mut source, model, store.step_chunks).await?;
        }
        Ok(Self {
            tx,
            quota: store.quota,
            write,
            late,
            source,
            prompts,
            before: match new_model {
                Some(_) => Before::OtherModel,
                None if created => Before::Nothing,
                None => Before::Source,
            },
            whole,
            began: Instant::now(),
            told: None,
            running: BTreeSet::new(),
            jobs: Jobs::new(write.max_chunks_per_job),
            step_chunks: store.step_chunks,
            change,
            chunks_delta: 0,
            rejections_gone: 0,
        })
    }

    /// The open transaction, for reading staged content.
    pub(super) fn transaction(&mut self) -> &mut Transaction {
        &mut self.tx
    }

    /// Deletes items and writes others, both in order of id, and commits.
    async fn patch(
        mut self,
        upsert: &[PlannedItem],
        delete: &[&str],
    ) -> Result<(Written, Option<Told>), StoreError> {
        for page in delete.chunks(PAGE_ITEMS) {
            self.delete_items(page).await?;
        }
        for page in pages(upsert) {
            self.write_items(page).await?;
        }
        let told = self.told.take();
        Ok((self.finish().await?, told))
    }

    /// Queues what no open job covers, and commits.
    pub(super) async fn finish(mut self) -> Result<Written, StoreError> {
        if self.late.is_some() {
            let model = self.write.model.as_ref();
            let other_model = model.is_some_and(|model| *model != self.source.model);
            let would_change = other_model || self.changes_items();
            return self.finish_late(would_change).await;
        }
        let new_revision = self.is_created() || self.is_new_model() || self.changes_items();
        if let Some(model) = self.write.model.as_ref().filter(|_| self.is_new_model()) {
            let former = std::mem::replace(&mut self.source.model, model.clone());
            self.note_former_model(&former).await?;
        }
        let source = if new_revision {
            self.source.revision += 1;
            self.update_source().await?
        } else {
            self.stored_source().await?
        };
        let planned = self.queue_new_jobs().await?;
        uncount(&mut self.tx, self.source.id, self.rejections_gone).await?;
        // Who deletes is let through, however much there is.
        if self.is_new_model() || self.change.items_added + self.change.items_changed > 0 {
            let namespace = &self.write.key.namespace;
            self.quota.check_pending(&mut self.tx, namespace).await?;
        }
        self.make_up_for_leases().await?;
        self.answer(source, new_revision || planned.changed, &planned.jobs)
            .await
    }

    /// Commits, and answers with the source and these jobs.
    async fn answer(
        mut self,
        source: WrittenSource,
        changed: bool,
        jobs: &[i64],
    ) -> Result<Written, StoreError> {
        let jobs = match jobs {
            [] => Vec::new(),
            jobs => jobs_in(&mut self.tx, jobs).await?,
        };
        self.tx.commit().await?;
        Ok(Written {
            change: self.change,
            changed,
            source,
            jobs,
        })
    }

    fn is_created(&self) -> bool {
        self.before == Before::Nothing
    }

    fn is_new_model(&self) -> bool {
        self.before == Before::OtherModel
    }

    fn changes_items(&self) -> bool {
        self.change.items_added + self.change.items_changed + self.change.items_deleted > 0
    }

    /// Notes that vectors of the model before may be left.
    async fn note_former_model(&mut self, former: &str) -> Result<(), StoreError> {
        sqlx::query(
            "-- store::content::note_former_model
             INSERT INTO weir.former_models (source_id, model) VALUES ($1, $2)
             ON CONFLICT (source_id, model) DO UPDATE SET changed_at = now()",
        )
        .bind(self.source.id)
        .bind(former)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Reads the source as it is stored.
    async fn stored_source(&mut self) -> Result<WrittenSource, StoreError> {
        Ok(sqlx::query_as(concat!(
            "-- store::content::stored_source\nSELECT ",
            written_columns!(),
            " FROM weir.sources WHERE id = $1"
        ))
        .bind(self.source.id)
        .fetch_one(&mut *self.tx)
        .await?)
    }

    /// Stores what the write made of the source, and returns it.
    async fn update_source(&mut self) -> Result<WrittenSource, StoreError> {
        Ok(sqlx::query_as(concat!(
            "-- store::content::update_source
             UPDATE weir.sources
             SET model = $2, revision = $3, items_total = items_total + $4, chunks_total = chunks_total + $5,
                 prompt_id = $6, next_prompt_id = $7, prompted_to = $8, chunks_to_move = $9, updated_at = now()
             WHERE id = $1
             RETURNING ",
            written_columns!()
        ))
        .bind(self.source.id)
        .bind(&self.source.model)
        .bind(self.source.revision)
        .bind(self.change.items_added - self.change.items_deleted)
        .bind(self.chunks_delta)
        .bind(self.source.prompt_id)
        .bind(self.source.next_prompt_id)
        .bind(&self.source.prompted_to)
        .bind(self.source.chunks_to_move)
        .fetch_one(&mut *self.tx)
        .await?)
    }
}

/// Prepares a transaction that has locked its source for what follows. It waits for
/// the jobs of the source: others hold these for a moment only, and what it has done
/// would be done in vain. Where it writes `few`, its statements are planned once, as
/// lookups.
async fn has_source(tx: &mut Transaction, few: bool) -> Result<(), StoreError> {
    let patience = format!("{}ms", JOBS_LOCK_TIMEOUT.as_millis());
    // What was planned for few would be a poor plan for many.
    let planned: &[_] = if few {
        &LOOKUPS
    } else {
        &[("plan_cache_mode", "force_custom_plan")]
    };
    let patience = ("lock_timeout", patience.as_str());
    tx.set(planned.iter().copied().chain([patience])).await?;
    Ok(())
}

/// Has a locked source, whose jobs have ended, move to another model. What is stored
/// of one that is no larger than a step is compared with the new content as it is for
/// that model, and planned with it; a larger one moves step by step.
async fn change_model(
    tx: &mut Transaction,
    source: &mut LockedSource,
    model: &str,
    step_chunks: i64,
) -> Result<SourcePrompts, StoreError> {
    let before = SourcePrompts::of(tx, source).await?;
    let prompt = in_force(tx, model).await?;
    uncount_all(tx, source.id).await?;
    if source.items_total.max(source.chunks_total) > step_chunks {
        source.begin_to_move(prompt.id);
        return SourcePrompts::of(tx, source).await;
    }
    if before.are_all(&prompt.text) {
        forget(tx, source.id, &ItemRange::everything()).await?;
    } else {
        hash_all_anew(tx, source.id, &prompt.text).await?;
    }
    source.moved_on(prompt.id, None);
    Ok(SourcePrompts::all(prompt))
}

/// Ends all jobs of a locked source that gets another model: what they left is
/// planned anew. Returns how many were open.
async fn end_all_jobs(
    tx: &mut Transaction,
    source_id: i64,
    model: &str,
) -> Result<i64, StoreError> {
    let unsettled = lock_unsettled_jobs(tx, source_id).await?;
    settle(tx, unsettled.iter().filter(|job| !job.is_open())).await?;
    let why = format!("superseded: the source's model is now {model:?}");
    cancel_open_jobs(tx, source_id, RevokeReason::Superseded, &why).await
}

/// Creates the source of a write, unless it is there. Nobody else sees a new one
/// before the commit, which is as good as its lock.
async fn create_source(
    tx: &mut Transaction,
    write: &SourceWrite,
) -> Result<Option<LockedSource>, StoreError> {
    Ok(sqlx::query_as(concat!(
        "-- store::content::create_source
         INSERT INTO weir.sources (namespace, name, model, revision, prompt_id)
         SELECT $1, $2, $3, coalesce(
             (SELECT revision FROM weir.deleted_sources WHERE namespace = $1 AND name = $2), 0), coalesce(",
        prompt_in_force!("id", "$3"),
        ", 0)
         WHERE NOT EXISTS (SELECT FROM weir.sources WHERE namespace = $1 AND name = $2)
         ON CONFLICT (namespace, name) DO NOTHING
         RETURNING ",
        locked_columns!()
    ))
    .bind(&write.key.namespace)
    .bind(&write.key.name)
    .bind(write.model.as_ref().unwrap_or(&write.default_model))
    .fetch_optional(&mut **tx)
    .await?)
}
