//! `weir watch --all`: the sources that have something open, the busiest on
//! top, and all together below.

use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use weir_proto::v1::{
    Verdict, WatchSourcesRequest, WatchSourcesResponse, WatchStatusRequest, WatchStatusResponse,
};

use super::board::Board;
use crate::{
    connect::Session,
    failure::Failure,
    stream::{Event, keep_open},
};

/// Most sources watched.
const MAX_SOURCES: i32 = 1_000;

/// Watches until no job is open, or without end.
pub(super) async fn watch(
    session: &Session,
    everywhere: bool,
    follow: bool,
) -> Result<(), Failure> {
    let namespace = session.namespace_or_all(everywhere);
    let mut sources = sources(session, namespace.clone());
    let mut status = status(session, namespace);
    let mut board = Board::new(session, everywhere);
    loop {
        tokio::select! {
            Some(event) = sources.next() => match event {
                Event::Message(message) => board.sources(*message).await?,
                Event::Lost(reason) => board.lost(&reason)?,
                Event::Ended => {}
                Event::Failed(status) => return Err(status.into()),
            },
            Some(event) = status.next() => match event {
                Event::Message(message) => {
                    let status = message.status.unwrap_or_default();
                    let total = status.total.clone().unwrap_or_default();
                    let open = total.jobs_ready + total.jobs_delayed + total.jobs_running;
                    if open > 0 || follow {
                        board.status(&status, &total)?;
                        continue;
                    }
                    board.end(&status, &total)?;
                    let left = total.jobs_failed + total.jobs_cancelled + total.chunks_pending;
                    return match total.verdict() {
                        Verdict::Degraded if left == 0 && total.chunks_rejected > 0 => {
                            Err(Failure::rejected(&total.namespace, &[]))
                        }
                        Verdict::Degraded => Err(Failure::Incomplete),
                        _ => Ok(()),
                    };
                }
                // The other stream tells.
                Event::Lost(_) | Event::Ended => {}
                Event::Failed(status) => return Err(status.into()),
            },
        }
    }
}

fn sources(session: &Session, namespace: String) -> ReceiverStream<Event<WatchSourcesResponse>> {
    let client = session.jobs();
    let open = move |_| {
        let mut client = client.clone();
        let request = WatchSourcesRequest {
            namespace: namespace.clone(),
            page_size: MAX_SOURCES,
            unsettled_only: true,
            ..WatchSourcesRequest::default()
        };
        async move { client.watch_sources(request).await }
    };
    keep_open(open, true)
}

fn status(session: &Session, namespace: String) -> ReceiverStream<Event<WatchStatusResponse>> {
    let client = session.jobs();
    let open = move |_| {
        let mut client = client.clone();
        let namespace = namespace.clone();
        async move { client.watch_status(WatchStatusRequest { namespace }).await }
    };
    keep_open(open, true)
}
