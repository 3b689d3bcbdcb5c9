//! Clients that write their sources all the time, and keep a ledger of what
//! they were told. No two write the same source.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::{StreamExt as _, stream};
use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};
use sqlx::PgPool;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};
use weir_proto::v1::{
    CancelJobRequest, DeleteSourceRequest, ImportOpen, ImportSourceRequest, Item, ItemList, Job,
    JobState, PatchSourceRequest, PutSourceRequest, RetryJobRequest, SourceChange, WrittenSource,
    import_source_request::Message as Part, job_service_client::JobServiceClient,
    put_source_request::Content as Sent, source_service_client::SourceServiceClient,
};

use crate::{
    check,
    journal::Journal,
    ledger::{Content, Ledger, Write},
    pen::Pen,
    schedule::{self, SOURCES},
};

/// The namespace of every source.
pub(crate) const NAMESPACE: &str = "chaos";

/// Items of a source, at most.
const ITEMS: usize = 50;

/// Jobs of a source that are remembered, to be cancelled perhaps.
const REMEMBERED: usize = 20;

/// How long a client waits for an answer.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a write whose answer was lost may still be under way: held up by a
/// stopped coordinator behind a silent network, before a silent database.
const STRAGGLER: Duration = Duration::from_secs(20);

/// The same when nothing is stopped or silent any more.
pub(crate) const STRAGGLER_IN_PEACE: Duration = Duration::from_secs(4);

/// What became of a call.
pub(crate) enum Answer<T> {
    Said(T),
    /// It was refused, and did nothing.
    Refused(Status),
    /// Nobody knows.
    Lost,
}

/// What a client keeps of a source of its own.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) ledger: Ledger,
    /// The revision that was told last.
    revision: i64,
    /// Until when a write may still be under way.
    rests_until: Option<Instant>,
    /// Jobs that were told, and those of them that were cancelled.
    jobs: Vec<i64>,
    cancelled: Vec<i64>,
}

/// The name of a client's source.
pub(crate) fn name_of(client: usize, source: usize) -> String {
    format!("client-{client}-{source}")
}

/// How many calls of each kind had which outcome.
pub(crate) type Counts = BTreeMap<(&'static str, &'static str), usize>;

/// One client and its sources.
#[derive(Debug)]
pub(crate) struct Client {
    random: StdRng,
    pen: Pen,
    sources: SourceServiceClient<Channel>,
    jobs: JobServiceClient<Channel>,
    pool: PgPool,
    journal: Journal,
    pub(crate) kept: BTreeMap<String, Kept>,
    pub(crate) counts: Counts,
}

impl Client {
    /// A client that talks to this URL, and may look into the database.
    pub(crate) fn new(n: usize, seed: u64, url: String, pool: PgPool, journal: Journal) -> Self {
        let endpoint = Endpoint::from_shared(url).expect("the URL is ours");
        let channel = endpoint.connect_timeout(CALL_TIMEOUT).connect_lazy();
        let kept = |source| {
            let kept = Kept {
                ledger: Ledger::new(),
                revision: 0,
                rests_until: None,
                jobs: Vec::new(),
                cancelled: Vec::new(),
            };
            (name_of(n, source), kept)
        };
        Self {
            random: schedule::source(seed, &("client", n)),
            pen: Pen::new(n),
            sources: SourceServiceClient::new(channel.clone()),
            jobs: JobServiceClient::new(channel),
            pool,
            journal,
            kept: (0..SOURCES).map(kept).collect(),
            counts: Counts::new(),
        }
    }

    /// Writes until it is told to stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Self {
        while !stop.is_cancelled() {
            let names: Vec<String> = self.kept.keys().cloned().collect();
            let name = names.choose(&mut self.random).cloned().unwrap_or_default();
            match self.kept[&name].rests_until {
                None => self.act(&name).await,
                Some(until) if until < Instant::now() => self.look(&name).await,
                Some(_) => {}
            }
            let pause = self.random.random_range(20..300);
            time::sleep(Duration::from_millis(pause)).await;
        }
        self
    }

    /// Finds out what became of lost writes, once none is under way any more.
    pub(crate) async fn settle(&mut self) {
        let names: Vec<String> = self.kept.keys().cloned().collect();
        for name in names {
            if self.kept[&name].rests_until.is_some() {
                self.look(&name).await;
            }
            if self.kept[&name].rests_until.is_some() {
                self.journal.find(format!("{name} could not be looked at"));
            }
        }
    }

    async fn look(&mut self, name: &str) {
        // The database may be away; then it is looked at again.
        let Ok(stored) = check::stored(&self.pool, name).await else {
            return;
        };
        let kept = self.kept.get_mut(name).expect("it is one of ours");
        if !kept
            .ledger
            .seen(|content| check::is_content(content, stored.as_ref()))
        {
            let possible = kept.ledger.possible().len();
            self.journal.find(format!(
                "{name} holds none of the {possible} contents that its client may have written"
            ));
        }
        // The revision may have risen unheard.
        kept.revision = 0;
        kept.rests_until = None;
    }

    async fn act(&mut self, name: &str) {
        let content = self.kept[name].ledger.content().cloned();
        let Some(content) = content else {
            let content = self.fresh(name);
            return self.replace(name, content).await;
        };
        match self.random.random_range(0..100) {
            0..25 => {
                let content = self.changed(name, content);
                self.replace(name, content).await;
            }
            25..30 => {
                let content = self.fresh(name);
                self.replace(name, content).await;
            }
            30..32 => self.replace(name, Content::new()).await,
            32..80 => self.patch(name, &content).await,
            80..86 => self.delete(name).await,
            86..95 => self.cancel(name).await,
            _ => self.retry(name).await,
        }
    }

    fn fresh(&mut self, name: &str) -> Content {
        let items = self.random.random_range(1..=ITEMS);
        let item = |n| {
            let item_id = format!("i{n:02}");
            let text = self.pen.text(name, &item_id, &mut self.random);
            (item_id, text)
        };
        (0..items).map(item).collect()
    }

    /// The same content but for some items.
    fn changed(&mut self, name: &str, mut content: Content) -> Content {
        content.retain(|_, _| self.random.random_range(0..100) >= 10);
        for text in content.values_mut() {
            if self.random.random_range(0..100) < 20 {
                *text = self.pen.edit(text, &mut self.random);
            }
        }
        for _ in 0..self.random.random_range(0..10) {
            let item_id = format!("i{:02}", self.random.random_range(0..ITEMS));
            let text = self.pen.text(name, &item_id, &mut self.random);
            content.insert(item_id, text);
        }
        content
    }

    async fn replace(&mut self, name: &str, content: Content) {
        let write = Write::Replace(content.clone());
        if self.random.random_range(0..4) == 0 {
            let open = Part::Open(ImportOpen {
                namespace: NAMESPACE.to_owned(),
                name: name.to_owned(),
                ..ImportOpen::default()
            });
            let parts: Vec<Part> = wire(content)
                .chunks(10)
                .map(|items| {
                    Part::Items(ItemList {
                        items: items.to_vec(),
                    })
                })
                .collect();
            let part = |part| ImportSourceRequest {
                message: Some(part),
            };
            // Slow enough for something to happen in between.
            let messages =
                stream::iter([vec![open], parts].concat()).then(move |message| async move {
                    time::sleep(Duration::from_millis(20)).await;
                    part(message)
                });
            let mut sources = self.sources.clone();
            let answer = self.call("import", sources.import_source(messages)).await;
            let answer = answer.map(|said| (said.source, said.change, said.jobs));
            return self.written(name, &write, answer);
        }
        let request = PutSourceRequest {
            namespace: NAMESPACE.to_owned(),
            name: name.to_owned(),
            content: Some(Sent::Items(ItemList {
                items: wire(content),
            })),
            ..PutSourceRequest::default()
        };
        let mut sources = self.sources.clone();
        let answer = self.call("put", sources.put_source(request)).await;
        let answer = answer.map(|said| (said.source, said.change, said.jobs));
        self.written(name, &write, answer);
    }

    async fn patch(&mut self, name: &str, content: &Content) {
        let mut upsert = Content::new();
        let mut delete = BTreeSet::new();
        for _ in 0..self.random.random_range(1..15) {
            let item_id = format!("i{:02}", self.random.random_range(0..ITEMS));
            if self.random.random_range(0..100) < 15 {
                delete.insert(item_id);
            } else {
                let text = match content.get(&item_id) {
                    Some(text) => self.pen.edit(text, &mut self.random),
                    None => self.pen.text(name, &item_id, &mut self.random),
                };
                upsert.insert(item_id, text);
            }
        }
        delete.retain(|item_id| !upsert.contains_key(item_id));
        let delete: Vec<String> = delete.into_iter().collect();
        let request = PatchSourceRequest {
            namespace: NAMESPACE.to_owned(),
            name: name.to_owned(),
            upsert: wire(upsert.clone()),
            delete_item_ids: delete.clone(),
            priority: 0,
            expected_revision: None,
        };
        let mut sources = self.sources.clone();
        let answer = self.call("patch", sources.patch_source(request)).await;
        let answer = answer.map(|said| (said.source, said.change, said.jobs));
        self.written(name, &Write::Patch { upsert, delete }, answer);
    }

    async fn delete(&mut self, name: &str) {
        let request = DeleteSourceRequest {
            namespace: NAMESPACE.to_owned(),
            name: name.to_owned(),
            expected_revision: None,
        };
        let mut sources = self.sources.clone();
        let answer = self.call("delete", sources.delete_source(request)).await;
        let kept = self.kept.get_mut(name).expect("it is one of ours");
        match answer {
            Answer::Said(said) => {
                let items = kept.ledger.content().map(Content::len);
                if items != Some(said.items_deleted as usize) {
                    let told = said.items_deleted;
                    self.journal
                        .find(format!("deleting {name} told {told} items, not {items:?}"));
                }
                kept.ledger.answered(&Write::Delete);
                kept.revision = 0;
            }
            Answer::Refused(status) => {
                self.journal
                    .find(format!("deleting {name} was refused: {status}"));
            }
            Answer::Lost => {
                kept.ledger.lost(&Write::Delete);
                kept.rests_until = Some(Instant::now() + STRAGGLER);
            }
        }
    }

    /// Takes in what became of a put, an import or a patch.
    fn written(
        &mut self,
        name: &str,
        write: &Write,
        answer: Answer<(Option<WrittenSource>, Option<SourceChange>, Vec<Job>)>,
    ) {
        let kept = self.kept.get_mut(name).expect("it is one of ours");
        match answer {
            Answer::Said((Some(source), Some(change), jobs)) => {
                let before = kept.ledger.content().cloned().unwrap_or_default();
                kept.ledger.answered(write);
                let after = kept.ledger.content().cloned().unwrap_or_default();
                let expected = difference(&before, &after, write);
                let told = (
                    source.items,
                    change.items_added,
                    change.items_changed,
                    change.items_deleted,
                );
                if told != expected {
                    self.journal.find(format!(
                        "a write of {name} told (items, added, changed, deleted) {told:?}, not {expected:?}"
                    ));
                }
                let rises = expected.1 + expected.2 + expected.3 > 0;
                if source.revision < kept.revision + i64::from(rises) {
                    let (was, is) = (kept.revision, source.revision);
                    self.journal
                        .find(format!("{name} went from revision {was} to {is}"));
                }
                kept.revision = source.revision;
                // Only those that embed what it changed; older ones may be open still.
                kept.jobs.extend(jobs.into_iter().map(|job| job.job_id));
                kept.jobs
                    .drain(..kept.jobs.len().saturating_sub(REMEMBERED));
                kept.cancelled.clear();
            }
            Answer::Said(_) => self.journal.find(format!("a write of {name} told nothing")),
            Answer::Refused(status) => {
                self.journal
                    .find(format!("a write of {name} was refused: {status}"));
            }
            Answer::Lost => {
                kept.ledger.lost(write);
                kept.rests_until = Some(Instant::now() + STRAGGLER);
            }
        }
    }

    /// Cancels a job of the source, which may have ended meanwhile.
    async fn cancel(&mut self, name: &str) {
        let Some(job_id) = self.kept[name].jobs.choose(&mut self.random).copied() else {
            return;
        };
        let mut jobs = self.jobs.clone();
        let answer = self
            .call("cancel", jobs.cancel_job(CancelJobRequest { job_id }))
            .await;
        match answer {
            Answer::Said(said) => {
                let job = said.job.unwrap_or_default();
                if job.job_id != job_id || job.state() != JobState::Cancelled {
                    let state = job.state();
                    self.journal
                        .find(format!("job {job_id} was cancelled but is {state:?}"));
                }
                let kept = self.kept.get_mut(name).expect("it is one of ours");
                kept.cancelled.push(job_id);
            }
            Answer::Refused(status) => self.expect_too_late("cancelling", job_id, &status),
            Answer::Lost => {}
        }
    }

    /// Queues a cancelled job of the source again.
    async fn retry(&mut self, name: &str) {
        let kept = self.kept.get_mut(name).expect("it is one of ours");
        let Some(job_id) = kept.cancelled.pop() else {
            return;
        };
        let request = RetryJobRequest {
            job_id,
            force: false,
        };
        let mut jobs = self.jobs.clone();
        let answer = self.call("retry", jobs.retry_job(request)).await;
        match answer {
            Answer::Said(said) => {
                let kept = self.kept.get_mut(name).expect("it is one of ours");
                kept.jobs.extend(said.jobs.iter().map(|job| job.job_id));
            }
            Answer::Refused(status) => self.expect_too_late("retrying", job_id, &status),
            Answer::Lost => {}
        }
    }

    /// The job may have ended, or others taken over what it left.
    fn expect_too_late(&self, doing: &str, job_id: i64, status: &Status) {
        if status.code() != Code::FailedPrecondition {
            self.journal
                .find(format!("{doing} job {job_id} was refused: {status}"));
        }
    }

    async fn call<T>(
        &mut self,
        kind: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Answer<T> {
        ask(&self.journal, &mut self.counts, kind, call).await
    }
}

/// Makes a call and counts it by what it is answered, which it sorts. A fault of
/// the program is a finding.
pub(crate) async fn ask<T>(
    journal: &Journal,
    counts: &mut Counts,
    kind: &'static str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Answer<T> {
    let (outcome, answer) = match time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(response)) => ("answered", Answer::Said(response.into_inner())),
        Ok(Err(status)) => match status.code() {
            Code::InvalidArgument
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::AlreadyExists
            | Code::ResourceExhausted
            | Code::Unimplemented
            | Code::Aborted => ("refused", Answer::Refused(status)),
            code => {
                // Its own faults, not what the network makes of a broken connection.
                if status.message().starts_with("internal error") {
                    journal.find(format!("a {kind} failed: {status}"));
                } else if code == Code::PermissionDenied || code == Code::Unauthenticated {
                    journal.find(format!("a {kind} was denied: {status}"));
                }
                ("lost", Answer::Lost)
            }
        },
        Err(_) => ("lost", Answer::Lost),
    };
    *counts.entry((kind, outcome)).or_default() += 1;
    answer
}

impl<T> Answer<T> {
    fn map<U>(self, to: impl FnOnce(T) -> U) -> Answer<U> {
        match self {
            Self::Said(said) => Answer::Said(to(said)),
            Self::Refused(status) => Answer::Refused(status),
            Self::Lost => Answer::Lost,
        }
    }
}

/// What a write must tell: items, and of these added, changed and deleted.
fn difference(before: &Content, after: &Content, write: &Write) -> (i64, i64, i64, i64) {
    debug_assert!(!matches!(write, Write::Delete));
    let count = |items: usize| items as i64;
    let added = after
        .keys()
        .filter(|item_id| !before.contains_key(*item_id));
    let changed = after
        .iter()
        .filter(|(item_id, text)| before.get(*item_id).is_some_and(|was| was != *text));
    let deleted = before
        .keys()
        .filter(|item_id| !after.contains_key(*item_id));
    (
        count(after.len()),
        count(added.count()),
        count(changed.count()),
        count(deleted.count()),
    )
}

pub(crate) fn wire(content: Content) -> Vec<Item> {
    let item = |(item_id, text)| Item {
        item_id,
        text,
        metadata: None,
    };
    content.into_iter().map(item).collect()
}
