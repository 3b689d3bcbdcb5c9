//! The client of the coordinator, and the only room here that sees generated
//! types: everything else speaks the worker's own.

mod convert;
#[cfg(test)]
pub(crate) mod fake;
mod tls;
mod token;

use std::{collections::BTreeMap, error::Error, time::Duration};

use futures::{StreamExt as _, stream};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint, Uri},
};
use weir_proto::{
    limits::MAX_WORKER_MESSAGE_BYTES,
    v1::{self, worker_service_client::WorkerServiceClient},
};

use self::token::Token;
use crate::{
    config::Credentials,
    health::Condition,
    part::{ChunkKey, End, LeaseId, Part, PartResult},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that is gone without a word is noticed after interval plus timeout:
/// soon enough to be back on another replica within the orphan grace.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(4);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// How long the coordinator may take to open a session: not longer than the orphan
/// grace, so that another replica can still be asked.
const OPEN_TIMEOUT: Duration = Duration::from_secs(8);
/// Messages that wait to be sent. Few: what cannot be sent yet grows together.
const QUEUE: usize = 2;

/// What a session is opened with.
#[derive(Debug, Clone)]
pub(crate) struct Opening {
    pub(crate) worker_id: String,
    /// The models, with the most chunks of a batch of each.
    pub(crate) models: Vec<(String, u32)>,
    /// The parts held of an earlier session, by lease, with their chunks.
    pub(crate) held: BTreeMap<LeaseId, Vec<(i64, Vec<ChunkKey>)>>,
}

/// What holds for a session; each more than zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    /// How long leases last from each renewal.
    pub(crate) lease_duration: Duration,
    pub(crate) heartbeat_interval: Duration,
}

/// What the worker says on a session.
#[derive(Debug)]
pub(crate) enum Message<'a> {
    /// So many more chunks of a model can be sent.
    Credit {
        model: &'a str,
        chunks: usize,
    },
    Results(Vec<&'a PartResult>),
    Heartbeat,
    /// How the embedder of a model is.
    Condition {
        model: &'a str,
        condition: Condition,
    },
    Drain,
}

/// What the coordinator says on a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Chunks to embed.
    Batch { model: String, parts: Vec<Part> },
    /// Results are committed, of the parts of these numbers; of each so many
    /// chunks were not stored, for their texts had changed.
    Acks(Vec<(i64, usize)>),
    /// A lease has ended, and why, for a person, where that is said.
    Ended(LeaseId, End, String),
}

/// Calls the coordinator; cheap to clone. Connects when it is first needed and
/// again whenever the connection is gone.
#[derive(Debug, Clone)]
pub(crate) struct Coordinator {
    client: WorkerServiceClient<InterceptedService<Channel, Token>>,
}

impl Coordinator {
    /// Fails when a file of the credentials cannot be used, or the token would not
    /// stay secret.
    pub(crate) fn new(uri: &Uri, credentials: &Credentials) -> anyhow::Result<Self> {
        let token = Token::open(credentials, uri)?;
        let endpoint = Endpoint::from(tls::plain(uri))
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let channel = if uri.scheme_str() == Some("https") {
            let connector = tls::connector(uri, credentials)?;
            endpoint
                .origin(uri.clone())
                .connect_with_connector_lazy(connector)
        } else {
            endpoint.connect_lazy()
        };
        let client = WorkerServiceClient::with_interceptor(channel, token)
            .max_decoding_message_size(MAX_WORKER_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_WORKER_MESSAGE_BYTES);
        Ok(Self { client })
    }

    /// Opens a session. Fails, with words for a person, when that did not work.
    pub(crate) async fn open(&self, opening: Opening) -> Result<Session, String> {
        let mut client = self.client.clone();
        let (requests, receiver) = mpsc::channel(QUEUE);
        let first = stream::iter([convert::open(opening)]);
        let rest = ReceiverStream::new(receiver);
        let opened = async {
            let events = client.stream_batches(first.chain(rest)).await;
            let mut events = events.map_err(|status| describe(&status))?.into_inner();
            let first = events.message().await.map_err(|status| describe(&status))?;
            let first = first.ok_or_else(|| "the coordinator ended the session".to_owned())?;
            let terms = convert::terms(&first)?;
            Ok(Session {
                requests: Requests(requests),
                events,
                terms,
            })
        };
        let late = || format!("the coordinator did not answer within {OPEN_TIMEOUT:?}");
        timeout(OPEN_TIMEOUT, opened)
            .await
            .unwrap_or_else(|_| Err(late()))
    }
}

/// An open session. Dropping it ends the stream.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) requests: Requests,
    events: Streaming<v1::StreamBatchesResponse>,
    pub(crate) terms: Terms,
}

impl Session {
    /// Waits for what the coordinator says next. `None` when it ended the session.
    /// Loses nothing when it is dropped.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, String> {
        loop {
            let message = self.events.message().await;
            let Some(message) = message.map_err(|status| describe(&status))? else {
                return Ok(None);
            };
            // A message of a kind that this version does not know carries nothing
            // that it could act on.
            if let Some(event) = convert::event(message)? {
                return Ok(Some(event));
            }
        }
    }
}

/// The worker's side of a session. A session that is over takes nothing more, and
/// says why when it is read.
#[derive(Debug, Clone)]
pub(crate) struct Requests(mpsc::Sender<v1::StreamBatchesRequest>);

impl Requests {
    /// Takes the place of one message; `None` while too many wait to be sent.
    pub(crate) fn place(&self) -> Option<Place<'_>> {
        self.0.try_reserve().ok().map(Place)
    }

    /// Waits until a message can be sent; for ever when the session is over.
    pub(crate) async fn ready(&self) {
        if self.0.reserve().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The place of one message.
pub(crate) struct Place<'a>(mpsc::Permit<'a, v1::StreamBatchesRequest>);

impl Place<'_> {
    pub(crate) fn send(self, message: Message<'_>) {
        self.0.send(convert::message(message));
    }
}

/// Says what a status means, with the code where the coordinator sent it.
fn describe(status: &Status) -> String {
    // A status with a source was made here, of a broken transport, whatever its
    // code.
    let Some(source) = status.source() else {
        return format!("{} ({:?})", status.message(), status.code());
    };
    let mut cause: &dyn Error = source;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    format!("{}: {cause}", status.message())
}
