//! Prompts: what stands before each text of a model's documents when it is
//! embedded. Of each model one is in force, which the coordinator that started
//! last has set; sources that have another are hashed anew, step by step. So are
//! large ones that move to another model.

use super::{
    CHANGE_CHANNEL, QUEUE_CHANNEL, Store, StoreError,
    database::Transaction,
    locks::{Free, LockedSource, UnsettledJob, lock_free_source, lock_jobs_about},
    planning::{Order, Wanted, queue_pending, recount_jobs, take_over},
    rejections::uncount,
    sources::notify,
    steps::step_after,
};
use crate::job::{
    chunk::Chunk,
    plan::{ItemRange, TextHash},
    state::Trigger,
};

/// The prompt of a chunk, as SQL, given the columns of its source and that of
/// its item; null where there is none.
macro_rules! prompt_of {
    ($source:literal, $item_id:literal) => {
        concat!(
            "(SELECT prompts.prompt FROM weir.prompts
              WHERE prompts.id = CASE WHEN ",
            $item_id,
            " <= ",
            $source,
            ".prompted_to THEN ",
            $source,
            ".next_prompt_id ELSE ",
            $source,
            ".prompt_id END)"
        )
    };
}
pub(super) use prompt_of;

/// Columns of the prompt that is in force for a model, as SQL; no row where none
/// was ever set.
macro_rules! prompt_in_force {
    ($columns:literal, $model:literal) => {
        concat!(
            "(SELECT ",
            $columns,
            " FROM weir.prompts WHERE model = ",
            $model,
            " ORDER BY set_at DESC, id DESC LIMIT 1)"
        )
    };
}
pub(super) use prompt_in_force;

/// What a step of a source whose prompt or model changes did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reprompted {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its model.
    pub model: String,
    /// Whether it moves to this model.
    pub moves: bool,
    /// Jobs queued.
    pub queued: usize,
    /// Whether all of its chunks have the prompt now.
    pub finished: bool,
}

impl Store {
    /// Puts the prompts that the operator has set in force, by model. Returns the
    /// models that had another.
    pub async fn set_prompts<'a>(
        &self,
        prompts: &[(&'a str, &'a str)],
    ) -> Result<Vec<&'a str>, StoreError> {
        let mut changed = Vec::new();
        for &(model, prompt) in prompts {
            if self.set_prompt(model, prompt).await? {
                changed.push(model);
            }
        }
        Ok(changed)
    }

    /// Puts a prompt in force, unless it is. Returns whether it was another.
    async fn set_prompt(&self, model: &str, prompt: &str) -> Result<bool, StoreError> {
        self.unlocked("the prompts of the models", || {
            self.try_set_prompt(model, prompt)
        })
        .await
    }

    async fn try_set_prompt(&self, model: &str, prompt: &str) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        // One at a time: each sees what the one before has set, and is later than that.
        sqlx::query(
            "-- store::prompts::set_prompt\nLOCK TABLE weir.prompts IN SHARE ROW EXCLUSIVE MODE",
        )
        .execute(&mut *tx)
        .await?;
        if in_force(&mut tx, model).await?.text == prompt {
            return Ok(false);
        }
        sqlx::query(
            "-- store::prompts::set_prompt
             WITH now AS (
                 SELECT greatest(clock_timestamp(), max(set_at) + interval '1 microsecond') AS at
                 FROM weir.prompts WHERE model = $1
             ), again AS (
                 UPDATE weir.prompts SET set_at = now.at FROM now WHERE model = $1 AND prompt = $2 RETURNING id
             )
             INSERT INTO weir.prompts (model, prompt, set_at)
             SELECT $1, $2, now.at FROM now WHERE NOT EXISTS (SELECT FROM again)",
        )
        .bind(model)
        .bind(prompt)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Returns up to `limit` sources that are in the midst of a change of their prompt
    /// or model, whichever, and as many whose prompt is not that in force.
    pub async fn sources_to_prompt(&self, limit: i64) -> Result<Vec<i64>, StoreError> {
        Ok(sqlx::query_scalar(
            "-- store::prompts::sources_to_prompt
             WITH in_force AS (
                 SELECT DISTINCT ON (model) model, id FROM weir.prompts ORDER BY model, set_at DESC, id DESC
             )
             (SELECT id FROM weir.sources WHERE next_prompt_id IS NOT NULL ORDER BY random() LIMIT $1)
             UNION ALL
             -- What differs is less or more: each is a look at an index.
             (SELECT s.id FROM in_force p CROSS JOIN LATERAL (
                  (SELECT id FROM weir.sources WHERE model = p.model AND prompt_id < p.id AND next_prompt_id IS NULL
                   LIMIT $1)
                  UNION ALL
                  (SELECT id FROM weir.sources WHERE model = p.model AND prompt_id > p.id AND next_prompt_id IS NULL
                   LIMIT $1)) s
              LIMIT $1)",
        )
        .bind(limit)
        .fetch_all(&self.pool)
        .await?)
    }

    /// Takes one step of a source that moves to another model, or whose prompt is not
    /// that in force: hashes up to `chunks` of its chunks anew, or those of one item
    /// that has more, and queues them. `None`: nothing is to be done, or somebody else
    /// has the source's lock.
    pub async fn reprompt(
        &self,
        source_id: i64,
        chunks: i64,
        max_chunks_per_job: i32,
    ) -> Result<Option<Reprompted>, StoreError> {
        let mut tx = self.begin_step().await?;
        let Free::Locked(mut source) = lock_free_source(&mut tx, source_id).await? else {
            return Ok(None);
        };
        let moves = source.chunks_to_move.is_some();
        if source.next_prompt_id.is_none() {
            // One change is finished before the next begins: there are never three prompts.
            let next = in_force(&mut tx, &source.model).await?;
            if next.id == source.prompt_id {
                return Ok(None);
            }
            source.next_prompt_id = Some(next.id);
            source.prompted_to = Some(String::new());
        }
        let queued = take_step(&mut tx, &mut source, chunks, max_chunks_per_job).await?;
        notify(&mut tx, QUEUE_CHANNEL, source_id).await?;
        notify(&mut tx, CHANGE_CHANNEL, source_id).await?;
        tx.commit().await?;
        Ok(Some(Reprompted {
            finished: source.next_prompt_id.is_none(),
            namespace: source.namespace,
            name: source.name,
            model: source.model,
            moves,
            queued: queued.len(),
        }))
    }
}

/// Gives the next of a locked source's chunks, up to so many, the prompt that it
/// changes to, and queues them. Returns the jobs that this makes.
pub(super) async fn take_step(
    tx: &mut Transaction,
    source: &mut LockedSource,
    chunks: i64,
    max_chunks_per_job: i32,
) -> Result<Vec<i64>, StoreError> {
    let prompts = SourcePrompts::of(tx, source).await?;
    let Some(next) = prompts.next else {
        return Ok(Vec::new());
    };
    let to_move = source.chunks_to_move;
    // The same words under another id change no text, but another model does.
    if to_move.is_none() && next.prompt.text == prompts.present.text {
        source.moved_on(next.prompt.id, None);
        source.note_prompts(tx).await?;
        return Ok(Vec::new());
    }
    let step = step_after(&mut **tx, source.id, &next.upto, chunks).await?;
    let mut unsettled = lock_jobs_about(tx, source.id, &step.range).await?;
    let reach = reach_of_ended(&unsettled, &step.range);
    if reach != step.range {
        unsettled = lock_jobs_about(tx, source.id, &reach).await?;
    }
    let (chunks, rejections_gone) =
        hash_anew(tx, source.id, &step.range, &next.prompt.text).await?;
    if let Some(to_move) = to_move {
        // What the model before rejected does not count any more.
        source.chunks_to_move = Some((to_move - chunks).max(0));
    } else {
        uncount(tx, source.id, rejections_gone).await?;
    }
    let upto = (!step.is_last).then(|| step.range.last.clone());
    source.moved_on(next.prompt.id, upto);
    let moved_by = match to_move {
        Some(_) => Some(moved_by(tx, source.id).await?),
        None => None,
    };
    source.note_prompts(tx).await?;
    let mut order = Order {
        trigger: Trigger::Reconcile,
        priority: 0,
        max_chunks_per_job,
        traceparent: None,
        parkings: 0,
        run_at: None,
    };
    if let Some((priority, traceparent)) = &moved_by {
        order.trigger = Trigger::Write;
        order.priority = *priority;
        order.traceparent = traceparent.as_deref();
    }
    shift_jobs(tx, source, &unsettled, step.range, order).await
}

/// A range with those of the ended jobs that meet it: what they left is queued anew
/// wherever it is.
fn reach_of_ended(unsettled: &[UnsettledJob], range: &ItemRange) -> ItemRange {
    let ended = unsettled.iter().filter(|job| !job.is_open());
    let ended = ended
        .filter(|job| job.meets(range))
        .map(UnsettledJob::range);
    ended.fold(range.clone(), |reach, of| ItemRange {
        first: reach.first.min(of.first),
        last: reach.last.max(of.last),
    })
}

/// The priority and the trace context of the write that a source moves for.
async fn moved_by(
    tx: &mut Transaction,
    source_id: i64,
) -> Result<(i16, Option<String>), StoreError> {
    Ok(sqlx::query_as(
        "-- store::prompts::moved_by
         SELECT coalesce(move_priority, 0::smallint), move_traceparent FROM weir.sources WHERE id = $1",
    )
    .bind(source_id)
    .fetch_one(&mut **tx)
    .await?)
}

impl LockedSource {
    /// Its chunks up to those of the item `upto` have a prompt now; `None`: all.
    pub(super) fn moved_on(&mut self, prompt_id: i64, upto: Option<String>) {
        if upto.is_some() {
            self.next_prompt_id = Some(prompt_id);
        } else {
            self.prompt_id = prompt_id;
            self.next_prompt_id = None;
            self.chunks_to_move = None;
        }
        self.prompted_to = upto;
    }

    /// From here on it moves to its model, or one that the caller gives it, and that
    /// one's prompt, from its first item on. Nothing of it is planned: its jobs have
    /// ended.
    pub(super) fn begin_to_move(&mut self, prompt_id: i64) {
        self.prompt_id = 0;
        self.next_prompt_id = Some(prompt_id);
        self.prompted_to = Some(String::new());
        self.chunks_to_move = Some(self.chunks_total);
    }

    /// Writes down for whom it moves: what its jobs are queued with.
    pub(super) async fn note_mover(
        &self,
        tx: &mut Transaction,
        priority: i16,
        traceparent: Option<&str>,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "-- store::prompts::note_mover
             UPDATE weir.sources SET move_priority = $2, move_traceparent = $3 WHERE id = $1",
        )
        .bind(self.id)
        .bind(priority)
        .bind(traceparent)
        .execute(&mut **tx)
        .await?;
        Ok(())
    }

    /// Writes down which prompts its chunks have.
    pub(super) async fn note_prompts(&self, tx: &mut Transaction) -> Result<(), StoreError> {
        sqlx::query(
            "-- store::prompts::note_prompts
             UPDATE weir.sources
             SET prompt_id = $2, next_prompt_id = $3, prompted_to = $4, chunks_to_move = $5,
                 move_priority = CASE WHEN $5 IS NOT NULL THEN move_priority END,
                 move_traceparent = CASE WHEN $5 IS NOT NULL THEN move_traceparent END
             WHERE id = $1",
        )
        .bind(self.id)
        .bind(self.prompt_id)
        .bind(self.next_prompt_id)
        .bind(&self.prompted_to)
        .bind(self.chunks_to_move)
        .execute(&mut **tx)
        .await?;
        Ok(())
    }
}

/// A prompt.
#[derive(Debug, Default, sqlx::FromRow)]
pub(super) struct Prompt {
    /// weir.prompts.id; 0 for none.
    pub(super) id: i64,
    /// The words, which may be none.
    #[sqlx(rename = "prompt")]
    pub(super) text: String,
}

/// The prompts that the chunks of a locked source have.
#[derive(Debug, Default)]
pub(super) struct SourcePrompts {
    /// What they have that have not the next.
    present: Prompt,
    /// While it changes.
    next: Option<NextPrompt>,
}

#[derive(Debug)]
struct NextPrompt {
    prompt: Prompt,
    /// The last item whose chunks have it.
    upto: String,
}

impl SourcePrompts {
    /// Those of a source that is locked. They are read once it is: the statement
    /// that waited for the lock may not see a prompt that was set meanwhile.
    pub(super) async fn of(
        tx: &mut Transaction,
        source: &LockedSource,
    ) -> Result<Self, StoreError> {
        let present = prompt(tx, source.prompt_id).await?;
        let next = match (source.next_prompt_id, &source.prompted_to) {
            (Some(id), Some(upto)) => Some(NextPrompt {
                prompt: prompt(tx, id).await?,
                upto: upto.clone(),
            }),
            _ => None,
        };
        Ok(Self { present, next })
    }

    /// One prompt for all of them.
    pub(super) fn all(present: Prompt) -> Self {
        Self {
            present,
            next: None,
        }
    }

    /// Whether all of them have a prompt of these words.
    pub(super) fn are_all(&self, text: &str) -> bool {
        self.next.is_none() && self.present.text == text
    }

    /// What the hashes of an item's chunks are.
    pub(super) fn hashes(&self, item_id: &str, chunks: &[Chunk]) -> Vec<TextHash> {
        let prompt = match &self.next {
            Some(next) if item_id <= next.upto.as_str() => &next.prompt,
            _ => &self.present,
        };
        let hashes = chunks.iter().map(|chunk| chunk.hash_after(&prompt.text));
        hashes.collect()
    }
}

/// The prompt that is in force for a model.
pub(super) async fn in_force(tx: &mut Transaction, model: &str) -> Result<Prompt, StoreError> {
    let prompt: Option<Prompt> = sqlx::query_as(concat!(
        "-- store::prompts::in_force\n",
        prompt_in_force!("id, prompt", "$1")
    ))
    .bind(model)
    .fetch_optional(&mut **tx)
    .await?;
    Ok(prompt.unwrap_or_default())
}

async fn prompt(tx: &mut Transaction, id: i64) -> Result<Prompt, StoreError> {
    if id == 0 {
        return Ok(Prompt::default());
    }
    Ok(sqlx::query_as(
        "-- store::prompts::prompt\nSELECT id, prompt FROM weir.prompts WHERE id = $1",
    )
    .bind(id)
    .fetch_one(&mut **tx)
    .await?)
}

/// Gives the chunks of a range of items the hashes that they have with a prompt.
/// Their rejections go, for another text was rejected, or by another model. Returns
/// how many chunks there are, and how many rejections there were. The source is
/// locked, and so are its unsettled jobs about the range; the vectors stay until others replace
/// them.
async fn hash_anew(
    tx: &mut Transaction,
    source_id: i64,
    range: &ItemRange,
    prompt: &str,
) -> Result<(i64, i64), StoreError> {
    Ok(sqlx::query_as(
        "-- store::prompts::hash_anew
         WITH rejections AS (
             DELETE FROM weir.rejections WHERE source_id = $1 AND item_id BETWEEN $2 AND $3 RETURNING 1
         ), hashed AS (
             UPDATE weir.chunks SET text_hash = sha256(convert_to($4 || text, 'UTF8'))
             WHERE source_id = $1 AND item_id BETWEEN $2 AND $3
               AND text_hash <> sha256(convert_to($4 || text, 'UTF8'))
         )
         SELECT (SELECT count(*) FROM weir.chunks WHERE source_id = $1 AND item_id BETWEEN $2 AND $3),
                (SELECT count(*) FROM rejections)",
    )
    .bind(source_id)
    .bind(&range.first)
    .bind(&range.last)
    .bind(prompt)
    .fetch_one(&mut **tx)
    .await?)
}

/// Gives all chunks of a locked source, which is no larger than a step, the hashes
/// that they have with the prompt of another model.
pub(super) async fn hash_all_anew(
    tx: &mut Transaction,
    source_id: i64,
    prompt: &str,
) -> Result<(), StoreError> {
    hash_anew(tx, source_id, &ItemRange::everything(), prompt).await?;
    Ok(())
}

/// Tells the jobs what was hashed anew: open ones have it to embed now, and what
/// ended ones left is queued with all else. Returns the jobs that were queued.
async fn shift_jobs(
    tx: &mut Transaction,
    source: &LockedSource,
    unsettled: &[UnsettledJob],
    step: ItemRange,
    mut order: Order<'_>,
) -> Result<Vec<i64>, StoreError> {
    let touched = unsettled.iter().filter(|job| job.meets(&step));
    let (open, ended): (Vec<_>, Vec<_>) = touched.partition(|job| job.is_open());
    let open: Vec<i64> = open.into_iter().map(|job| job.id).collect();
    recount_jobs(tx, source, &open).await?;
    let priorities = ended.iter().map(|job| job.priority);
    order.priority = priorities.max().unwrap_or(0).max(order.priority);
    let traceparent = ended.iter().find_map(|job| job.traceparent.as_deref());
    let order = Order {
        traceparent: order.traceparent.or(traceparent),
        ..order
    };
    let taken_over = take_over(tx, source, unsettled, &ended, &order).await?;
    let kept = lock_jobs_about(tx, source.id, &step).await?;
    let kept = kept.iter().map(UnsettledJob::range).collect();
    let queued = queue_pending(tx, source, Wanted::pending(vec![step]), kept, &order).await?;
    Ok([taken_over, queued].concat())
}
