//! A client that patches one source all the time, whatever becomes of the others.

use std::time::Duration;

use rand::{RngExt as _, rngs::StdRng};
use tokio::time;
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status, transport::Endpoint};
use weir_proto::v1::{
    ItemList, PatchSourceRequest, PutSourceRequest, put_source_request::Content as Sent,
    source_service_client::SourceServiceClient,
};
use weir_tests::PATIENCE;

use crate::{
    clients::{Answer, CALL_TIMEOUT, Counts, NAMESPACE, ask, wire},
    journal::Journal,
    ledger::{Content, Ledger, Write},
    pen::Pen,
    schedule::{self, CLIENTS},
};

/// The name of its source.
pub(crate) const SOURCE: &str = "hot";

/// Items of it.
const ITEMS: usize = 60;

/// The client. Each of its writes expects the revision of the one before, and is
/// sent again until it is answered: so it always knows what its source holds.
#[derive(Debug)]
pub(crate) struct Hot {
    random: StdRng,
    pen: Pen,
    sources: SourceServiceClient<tonic::transport::Channel>,
    journal: Journal,
    revision: i64,
    pub(crate) ledger: Ledger,
    pub(crate) counts: Counts,
}

impl Hot {
    /// A client that talks to this URL.
    pub(crate) fn new(seed: u64, url: String, journal: Journal) -> Self {
        let endpoint = Endpoint::from_shared(url).expect("the URL is ours");
        let channel = endpoint.connect_timeout(CALL_TIMEOUT).connect_lazy();
        Self {
            random: schedule::source(seed, &SOURCE),
            pen: Pen::new(CLIENTS),
            sources: SourceServiceClient::new(channel),
            journal,
            revision: 0,
            ledger: Ledger::new(),
            counts: Counts::new(),
        }
    }

    /// Writes until it is told to stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Self {
        self.put().await;
        while !stop.is_cancelled() {
            self.patch().await;
            let pause = self.random.random_range(10..60);
            time::sleep(Duration::from_millis(pause)).await;
        }
        self
    }

    async fn put(&mut self) {
        let text = |n| {
            let item_id = item_id(n);
            let text = self.pen.text(SOURCE, &item_id, &mut self.random);
            (item_id, text)
        };
        let content: Content = (0..ITEMS).map(text).collect();
        let request = PutSourceRequest {
            namespace: NAMESPACE.to_owned(),
            name: SOURCE.to_owned(),
            content: Some(Sent::Items(ItemList {
                items: wire(content.clone()),
            })),
            expected_revision: Some(0),
            ..PutSourceRequest::default()
        };
        let sources = self.sources.clone();
        let put = || {
            let (mut sources, request) = (sources.clone(), request.clone());
            async move {
                let said = sources.put_source(request).await?;
                Ok(said.map(|said| said.source.map(|source| source.revision)))
            }
        };
        self.write(&Write::Replace(content), "hot put", put).await;
    }

    /// Gives an item or two other texts, adds one, or deletes one.
    async fn patch(&mut self) {
        let before = self.ledger.content().cloned().unwrap_or_default();
        let mut upsert = Content::new();
        let mut delete = Vec::new();
        for _ in 0..self.random.random_range(1..=2) {
            let item_id = item_id(self.random.random_range(0..ITEMS));
            let text = match before.get(&item_id) {
                Some(_) if self.random.random_range(0..20) == 0 => {
                    delete.push(item_id);
                    continue;
                }
                Some(text) => self.pen.edit(text, &mut self.random),
                None => self.pen.text(SOURCE, &item_id, &mut self.random),
            };
            upsert.insert(item_id, text);
        }
        delete.retain(|item_id| !upsert.contains_key(item_id));
        delete.dedup();
        let request = PatchSourceRequest {
            namespace: NAMESPACE.to_owned(),
            name: SOURCE.to_owned(),
            upsert: wire(upsert.clone()),
            delete_item_ids: delete.clone(),
            priority: 0,
            expected_revision: Some(self.revision),
        };
        let sources = self.sources.clone();
        let patch = || {
            let (mut sources, request) = (sources.clone(), request.clone());
            async move {
                let said = sources.patch_source(request).await?;
                Ok(said.map(|said| said.source.map(|source| source.revision)))
            }
        };
        self.write(&Write::Patch { upsert, delete }, "hot patch", patch)
            .await;
    }

    /// Sends a write until it is answered.
    async fn write<F>(&mut self, write: &Write, kind: &'static str, send: impl Fn() -> F)
    where
        F: Future<Output = Result<Response<Option<i64>>, Status>>,
    {
        let expected = self.revision + 1;
        let counts = &mut self.counts;
        let journal = &self.journal;
        let answered = async {
            loop {
                match ask(journal, counts, kind, send()).await {
                    Answer::Said(revision) => return Ok(revision),
                    Answer::Refused(status) => return Err(status),
                    Answer::Lost => {}
                }
                time::sleep(Duration::from_millis(50)).await;
            }
        };
        match time::timeout(PATIENCE, answered).await {
            Ok(Ok(revision)) => {
                if revision != Some(expected) {
                    self.journal.find(format!(
                        "{SOURCE} went to revision {revision:?}, not {expected}"
                    ));
                }
                self.revision = revision.unwrap_or(expected);
                self.ledger.answered(write);
            }
            Ok(Err(status)) => {
                self.journal
                    .find(format!("a {kind} of {SOURCE} was refused: {status}"));
            }
            Err(_) => {
                self.journal.find(format!(
                    "a {kind} of {SOURCE} was not answered in {PATIENCE:?}"
                ));
                self.ledger.lost(write);
            }
        }
    }
}

fn item_id(n: usize) -> String {
    format!("i{n:02}")
}
