//! What became of each lease, as the database itself notes it.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::{Duration, SystemTime},
};

use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;
use weir_tests::embedder::Call;

use crate::pen::place_of_text;

/// Notes what happens to jobs, and when each vector is written under whose
/// lease, by the clock of this machine. Before the vector, for then the job has
/// not ended with it yet.
const TRIGGERS: &str = "
    CREATE TABLE public.history (
        seq bigint GENERATED ALWAYS AS IDENTITY, job_id bigint, source text COLLATE \"C\",
        first_item_id text COLLATE \"C\", last_item_id text COLLATE \"C\", worker_id text, was text, state text,
        was_epoch bigint, epoch bigint, reason text, moved boolean, at timestamptz);
    CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO public.history (job_id, source, first_item_id, last_item_id, worker_id, was, state, was_epoch,
                                    epoch, reason, moved, at)
        VALUES (NEW.id, NEW.source, NEW.first_item_id, NEW.last_item_id, coalesce(NEW.worker_id, OLD.worker_id),
                OLD.state, NEW.state, OLD.epoch, NEW.epoch, NEW.revoke_reason,
                NEW.chunks_done + NEW.chunks_rejected > OLD.chunks_done + OLD.chunks_rejected, clock_timestamp());
        RETURN NULL;
    END $$;
    CREATE TRIGGER note AFTER UPDATE ON weir.jobs FOR EACH ROW
        WHEN ((OLD.state, OLD.epoch, OLD.chunks_done, OLD.chunks_rejected)
              IS DISTINCT FROM (NEW.state, NEW.epoch, NEW.chunks_done, NEW.chunks_rejected))
        EXECUTE FUNCTION public.note();
    CREATE TABLE public.persisted (text_hash bytea, worker_id text, at timestamptz);
    CREATE FUNCTION public.persist() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO public.persisted SELECT NEW.text_hash, worker_id, clock_timestamp() FROM weir.jobs
        WHERE source_id = NEW.source_id AND state = 'running' AND NEW.item_id BETWEEN first_item_id AND last_item_id;
        RETURN NEW;
    END $$;
    CREATE TRIGGER persist BEFORE INSERT ON weir.embeddings FOR EACH ROW EXECUTE FUNCTION public.persist()";

/// Begins to note.
pub(crate) async fn begin(pool: &PgPool) -> sqlx::Result<()> {
    sqlx::raw_sql(TRIGGERS).execute(pool).await.map(|_| ())
}

#[derive(Debug, sqlx::FromRow)]
struct Moment {
    job_id: i64,
    source: String,
    first_item_id: String,
    last_item_id: String,
    worker_id: Option<String>,
    was: String,
    state: String,
    was_epoch: i64,
    epoch: i64,
    reason: Option<String>,
    moved: bool,
    at: DateTime<Utc>,
}

/// How a lease ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The job succeeded under it.
    Succeeded,
    /// It was taken away, for this reason.
    Lost(String),
    /// Its worker handed the job back, then.
    HandedBack(SystemTime),
}

/// A lease, from its claim on.
#[derive(Debug)]
pub(crate) struct Lease {
    job_id: i64,
    epoch: i64,
    source: String,
    first_item_id: String,
    last_item_id: String,
    pub(crate) claimed: SystemTime,
    /// Unset where it has none, or where the harness was not told.
    pub(crate) end: Option<End>,
}

/// What the history of a run tells.
#[derive(Debug, Default)]
pub(crate) struct History {
    leases: Vec<Lease>,
    /// Places in `leases`, by worker, oldest first.
    of_worker: HashMap<String, Vec<usize>>,
    /// By the hash of the text: under whose lease, and when.
    persisted: HashMap<Vec<u8>, Vec<(String, SystemTime)>>,
    /// When something was persisted, in order.
    progress: Vec<SystemTime>,
    /// Longest from the last that was heard of a job under a lease that was lost
    /// until it moved again.
    pub(crate) longest_recovery: Duration,
}

impl History {
    pub(crate) async fn read(pool: &PgPool) -> sqlx::Result<Self> {
        let moments: Vec<Moment> = sqlx::query_as("SELECT * FROM public.history ORDER BY seq")
            .fetch_all(pool)
            .await?;
        let persisted: Vec<(Vec<u8>, String, DateTime<Utc>)> =
            sqlx::query_as("SELECT text_hash, worker_id, at FROM public.persisted ORDER BY at")
                .fetch_all(pool)
                .await?;
        let mut history = Self::default();
        for (text_hash, worker, at) in persisted {
            let written = history.persisted.entry(text_hash).or_default();
            written.push((worker, at.into()));
        }
        let mut open: HashMap<(i64, i64), usize> = HashMap::new();
        // When each job was last heard of, and whether it has lost its lease since.
        let mut heard: HashMap<i64, (SystemTime, bool)> = HashMap::new();
        for moment in moments {
            history.take(moment, &mut open, &mut heard);
        }
        Ok(history)
    }

    fn take(
        &mut self,
        moment: Moment,
        open: &mut HashMap<(i64, i64), usize>,
        heard: &mut HashMap<i64, (SystemTime, bool)>,
    ) {
        let at: SystemTime = moment.at.into();
        let ended = moment.was == "running" && moment.state != "running";
        let revoked = ended && moment.epoch > moment.was_epoch;
        let lost = revoked && moment.reason.as_deref() == Some("lease_lost");
        let (since, orphaned) = heard.get(&moment.job_id).copied().unwrap_or((at, false));
        if lost {
            heard.insert(moment.job_id, (since, true));
        } else if moment.moved || !matches!(&moment.state[..], "queued" | "running") {
            if orphaned {
                let recovery = at.duration_since(since).unwrap_or_default();
                self.longest_recovery = self.longest_recovery.max(recovery);
            }
            heard.insert(moment.job_id, (at, false));
        } else if !orphaned {
            heard.insert(moment.job_id, (at, false));
        }
        if moment.moved {
            self.progress.push(at);
        }
        if moment.was == "queued" && moment.state == "running" {
            let place = self.leases.len();
            open.insert((moment.job_id, moment.epoch), place);
            let worker = moment.worker_id.unwrap_or_default();
            self.of_worker.entry(worker).or_default().push(place);
            self.leases.push(Lease {
                job_id: moment.job_id,
                epoch: moment.epoch,
                source: moment.source,
                first_item_id: moment.first_item_id,
                last_item_id: moment.last_item_id,
                claimed: at,
                end: None,
            });
        } else if ended && let Some(place) = open.remove(&(moment.job_id, moment.was_epoch)) {
            self.leases[place].end = Some(if revoked {
                End::Lost(moment.reason.unwrap_or_default())
            } else if moment.state == "succeeded" {
                End::Succeeded
            } else {
                End::HandedBack(at)
            });
        }
    }

    /// How many leases there were, and how many of them were lost, by reason.
    pub(crate) fn leases(&self) -> (usize, BTreeMap<String, usize>) {
        let mut lost = BTreeMap::new();
        for lease in &self.leases {
            if let Some(End::Lost(reason)) = &lease.end {
                *lost.entry(reason.clone()).or_default() += 1;
            }
        }
        (self.leases.len(), lost)
    }

    /// How long it took from a moment until something was persisted.
    pub(crate) fn until_progress(&self, from: SystemTime) -> Option<Duration> {
        let next = self.progress.partition_point(|at| *at < from);
        self.progress.get(next)?.duration_since(from).ok()
    }

    /// Under whose leases the vector of a text was written, and when, the first
    /// time first.
    pub(crate) fn persisted(&self, text: &str) -> &[(String, SystemTime)] {
        let hash = Sha256::digest(text);
        self.persisted
            .get(hash.as_slice())
            .map_or(&[], Vec::as_slice)
    }

    /// The lease under which a text was embedded: the last one of that worker on
    /// a job with the text's item.
    pub(crate) fn lease_of(&self, call: &Call, text: &str) -> Option<&Lease> {
        let (source, item_id) = place_of_text(text)?;
        let leases = self.of_worker.get(&call.caller)?;
        let covers = |lease: &&Lease| {
            lease.source == source
                && (lease.first_item_id.as_str()..=lease.last_item_id.as_str()).contains(&item_id)
                && lease.claimed <= call.came
        };
        let mut latest = leases.iter().rev().map(|place| &self.leases[*place]);
        latest.find(covers)
    }
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "job {} at epoch {} ({:?})",
            self.job_id, self.epoch, self.end
        )
    }
}
