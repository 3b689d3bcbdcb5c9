//! Prompts: what stands before each text of a model's documents when it is
//! embedded. Of each model one is in force, which the coordinator that started
//! last has set; sources that have another are hashed anew, step by step.

use super::{
    CHANGE_CHANNEL, QUEUE_CHANNEL, Store, StoreError,
    database::Transaction,
    locks::{Free, LockedSource, UnsettledJob, lock_free_source, lock_unsettled_jobs},
    planning::{Order, Wanted, queue_pending, recount_jobs, take_over},
    rejections::uncount,
    sources::notify,
};
use crate::job::{
    chunk::Chunk,
    plan::{ItemRange, TextHash},
    state::Trigger,
};

/// Chunks that one statement hashes anew, where all of a source are.
const PART: i64 = 5_000;

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

/// What a step of a source whose prompt changes did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reprompted {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its model.
    pub model: String,
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

    /// Returns up to `limit` sources whose prompt is not that in force, or is
    /// changing.
    pub async fn sources_to_prompt(&self, limit: i64) -> Result<Vec<i64>, StoreError> {
        Ok(sqlx::query_scalar(
            "-- store::prompts::sources_to_prompt
             WITH in_force AS (
                 SELECT DISTINCT ON (model) model, id FROM weir.prompts ORDER BY model, set_at DESC, id DESC
             )
             SELECT DISTINCT id FROM (
                 (SELECT id FROM weir.sources WHERE next_prompt_id IS NOT NULL LIMIT $1)
                 UNION ALL
                 -- What differs is less or more: each is a look at an index.
                 (SELECT s.id FROM in_force p CROSS JOIN LATERAL (
                      (SELECT id FROM weir.sources WHERE model = p.model AND prompt_id < p.id LIMIT $1)
                      UNION ALL
                      (SELECT id FROM weir.sources WHERE model = p.model AND prompt_id > p.id LIMIT $1)) s
                  LIMIT $1)) s",
        )
        .bind(limit)
        .fetch_all(&self.pool)
        .await?)
    }

    /// Takes one step of a source whose prompt is not that in force: hashes
    /// `chunks` of its chunks anew, and what is left of the last item, and queues them. `None`: nothing is to
    /// be done, or somebody else has the source's lock.
    pub async fn reprompt(
        &self,
        source_id: i64,
        chunks: i64,
        max_chunks_per_job: i32,
    ) -> Result<Option<Reprompted>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let Free::Locked(mut source) = lock_free_source(&mut tx, source_id).await? else {
            return Ok(None);
        };
        let prompts = SourcePrompts::of(&mut tx, &source).await?;
        // One change is finished before the next begins: there are never three prompts.
        let (next, from) = match prompts.next {
            Some(next) => (next.prompt, next.upto),
            None => (in_force(&mut tx, &source.model).await?, String::new()),
        };
        if next.id == source.prompt_id && source.next_prompt_id.is_none() {
            return Ok(None);
        }
        let mut reprompted = Reprompted {
            namespace: source.namespace.clone(),
            name: source.name.clone(),
            model: source.model.clone(),
            queued: 0,
            finished: true,
        };
        // The same words under another id change no text.
        let upto = if next.text == prompts.present.text {
            None
        } else {
            let unsettled = lock_unsettled_jobs(&mut tx, source_id).await?;
            let upto = hash_anew(&mut tx, source_id, &from, chunks, &next.text).await?;
            let step = ItemRange {
                first: from,
                last: upto.clone().unwrap_or(ItemRange::everything().last),
            };
            reprompted.queued =
                shift_jobs(&mut tx, &source, &unsettled, step, max_chunks_per_job).await?;
            upto
        };
        reprompted.finished = upto.is_none();
        source.moved_on(next.id, upto);
        source.note_prompts(&mut tx).await?;
        notify(&mut tx, QUEUE_CHANNEL, source_id).await?;
        notify(&mut tx, CHANGE_CHANNEL, source_id).await?;
        tx.commit().await?;
        Ok(Some(reprompted))
    }
}

impl LockedSource {
    /// Its chunks up to those of the item `upto` have a prompt now; `None`: all.
    pub(super) fn moved_on(&mut self, prompt_id: i64, upto: Option<String>) {
        if upto.is_some() {
            self.next_prompt_id = Some(prompt_id);
        } else {
            self.prompt_id = prompt_id;
            self.next_prompt_id = None;
        }
        self.prompted_to = upto;
    }

    /// Writes down which prompts its chunks have.
    async fn note_prompts(&self, tx: &mut Transaction) -> Result<(), StoreError> {
        sqlx::query(
            "-- store::prompts::note_prompts
             UPDATE weir.sources SET prompt_id = $2, next_prompt_id = $3, prompted_to = $4 WHERE id = $1",
        )
        .bind(self.id)
        .bind(self.prompt_id)
        .bind(self.next_prompt_id)
        .bind(&self.prompted_to)
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

/// Gives the chunks of a source the hashes that they have with a prompt, after
/// the item `from`: about `chunks` of them, and no item in part. Their rejections
/// go, for another text was rejected. Returns the last item that was done, `None`
/// at the end of the source. The source and its unsettled jobs are locked; the
/// vectors stay until others replace them.
async fn hash_anew(
    tx: &mut Transaction,
    source_id: i64,
    from: &str,
    chunks: i64,
    prompt: &str,
) -> Result<Option<String>, StoreError> {
    let (upto, rejections_gone): (Option<String>, i64) = sqlx::query_as(
        "-- store::prompts::hash_anew
         WITH last AS MATERIALIZED (
             SELECT item_id FROM weir.chunks WHERE source_id = $1 AND item_id > $2
             ORDER BY item_id, chunk_index OFFSET $3 - 1 LIMIT 1
         ), upto AS MATERIALIZED (
             SELECT coalesce((SELECT item_id FROM last), $4) AS item_id
         ), rejections AS (
             DELETE FROM weir.rejections
             WHERE source_id = $1 AND item_id > $2 AND item_id <= (SELECT item_id FROM upto)
             RETURNING 1
         ), hashed AS (
             UPDATE weir.chunks SET text_hash = sha256(convert_to($5 || text, 'UTF8'))
             WHERE source_id = $1 AND item_id > $2 AND item_id <= (SELECT item_id FROM upto)
         )
         SELECT (SELECT item_id FROM last), (SELECT count(*) FROM rejections)",
    )
    .bind(source_id)
    .bind(from)
    .bind(chunks)
    .bind(ItemRange::everything().last)
    .bind(prompt)
    .fetch_one(&mut **tx)
    .await?;
    uncount(tx, source_id, rejections_gone).await?;
    Ok(upto)
}

/// Gives all chunks of a locked source the hashes that they have with a prompt,
/// some at a time.
pub(super) async fn hash_all_anew(
    tx: &mut Transaction,
    source_id: i64,
    prompt: &str,
) -> Result<(), StoreError> {
    let mut from = String::new();
    while let Some(upto) = hash_anew(tx, source_id, &from, PART, prompt).await? {
        from = upto;
    }
    Ok(())
}

/// Tells the jobs what was hashed anew: open ones have it to embed now, and what
/// ended ones left is queued with all else. Returns how many were queued.
async fn shift_jobs(
    tx: &mut Transaction,
    source: &LockedSource,
    unsettled: &[UnsettledJob],
    step: ItemRange,
    max_chunks_per_job: i32,
) -> Result<usize, StoreError> {
    let touched = unsettled
        .iter()
        .filter(|job| job.covers_any(&step.first, &step.last));
    let (open, ended): (Vec<_>, Vec<_>) = touched.partition(|job| job.is_open());
    let open: Vec<i64> = open.into_iter().map(|job| job.id).collect();
    recount_jobs(tx, source, &open).await?;
    let order = Order {
        trigger: Trigger::Reconcile,
        priority: ended.iter().map(|job| job.priority).max().unwrap_or(0),
        max_chunks_per_job,
        traceparent: ended.iter().find_map(|job| job.traceparent.as_deref()),
        parkings: 0,
        run_at: None,
    };
    let taken_over = take_over(tx, source, unsettled, &ended, &order).await?;
    let kept = lock_unsettled_jobs(tx, source.id).await?;
    let kept = kept.iter().map(UnsettledJob::range).collect();
    let queued = queue_pending(tx, source, Wanted::pending(vec![step]), kept, &order).await?;
    Ok(taken_over.len() + queued.len())
}
