use std::sync::Mutex;

use futures::{FutureExt as _, StreamExt as _};
use tokio::{net::TcpListener, sync::oneshot};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::io::StreamReader;
use tonic::{Request, Response, Status, Streaming, transport::Server};
use weir_proto::v1::source_service_server::{SourceService, SourceServiceServer};

use super::*;
use crate::config::Settings;

#[test]
fn what_changed_is_told_in_one_line() {
    let mut change = v1::SourceChange {
        items_added: 12,
        items_changed: 3,
        items_unchanged: 1,
        chunks_pending: 15,
        jobs_superseded: 1,
        ..v1::SourceChange::default()
    };
    assert_eq!(
        describe(&change, 2),
        "16 items, 12 new, 3 changed, 15 chunks to embed in 2 jobs, 1 job superseded"
    );
    change = v1::SourceChange {
        items_unchanged: 1,
        ..v1::SourceChange::default()
    };
    assert_eq!(
        describe(&change, 0),
        "1 item, none changed, nothing new to embed"
    );
}

#[test]
fn warnings_are_cut_and_counted() {
    let warning = v1::ContentWarning {
        item_id: "a\nb".into(),
        message: "odd".into(),
    };
    assert_eq!(warn(std::slice::from_ref(&warning)), ["warning: a b: odd"]);
    assert_eq!(warn(&vec![warning.clone(); 10]).len(), 10);
    let lines = warn(&vec![warning; 25]);
    assert_eq!(lines.len(), 11);
    assert!(lines[10].contains("25 warnings"), "{}", lines[10]);
}

#[test]
fn a_named_format_beats_the_guess() {
    let path = Path::new("a.md");
    assert_eq!(Format::Text.resolve(path, b""), DocumentFormat::Text);
    assert_eq!(Format::Auto.resolve(path, b""), DocumentFormat::Markdown);
}

/// An import that was stored: its opening and its content.
type Stored = (v1::ImportOpen, Vec<u8>);

/// Takes one import.
struct Importer {
    /// Told when the first part of the document has come.
    arrived: Mutex<Option<oneshot::Sender<()>>>,
    /// Told what is stored.
    stored: Mutex<Option<oneshot::Sender<Stored>>>,
}

#[tonic::async_trait]
impl SourceService for Importer {
    async fn import_source(
        &self,
        request: Request<Streaming<v1::ImportSourceRequest>>,
    ) -> Result<Response<v1::ImportSourceResponse>, Status> {
        let stored = self.stored.lock().unwrap().take().expect("one call");
        let mut messages = request.into_inner();
        let (mut open, mut content) = (None, Vec::new());
        while let Some(message) = messages.message().await? {
            match message.message {
                Some(Message::Open(opening)) => open = Some(opening),
                Some(Message::DocumentPart(part)) => {
                    content.extend(part);
                    if let Some(arrived) = self.arrived.lock().unwrap().take() {
                        let _ = arrived.send(());
                    }
                }
                _ => return Err(Status::invalid_argument("neither opening nor part")),
            }
        }
        // Storing takes a while. A cancelled call looks like an ended one up
        // to here, and comes no further.
        tokio::task::yield_now().await;
        let _ = stored.send((open.expect("an opening"), content));
        Ok(Response::new(v1::ImportSourceResponse::default()))
    }

    async fn put_source(
        &self,
        _: Request<v1::PutSourceRequest>,
    ) -> Result<Response<v1::PutSourceResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn patch_source(
        &self,
        _: Request<v1::PatchSourceRequest>,
    ) -> Result<Response<v1::PatchSourceResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_source(
        &self,
        _: Request<v1::GetSourceRequest>,
    ) -> Result<Response<v1::GetSourceResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_sources(
        &self,
        _: Request<v1::ListSourcesRequest>,
    ) -> Result<Response<v1::ListSourcesResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn delete_source(
        &self,
        _: Request<v1::DeleteSourceRequest>,
    ) -> Result<Response<v1::DeleteSourceResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_chunks(
        &self,
        _: Request<v1::ListChunksRequest>,
    ) -> Result<Response<v1::ListChunksResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Imports what `content` makes of the news that its first part has arrived, and
/// returns the outcome with what was stored.
async fn import_from<R: AsyncRead + Unpin>(
    content: impl FnOnce(oneshot::Receiver<()>) -> R,
) -> (Result<v1::ImportSourceResponse, Failure>, Option<Stored>) {
    let (arrived, has_arrived) = oneshot::channel();
    let (stored, was_stored) = oneshot::channel();
    let service = SourceServiceServer::new(Importer {
        arrived: Mutex::new(Some(arrived)),
        stored: Mutex::new(Some(stored)),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let coordinator = format!("http://{}", listener.local_addr().unwrap());
    let incoming = TcpListenerStream::new(listener);
    tokio::spawn(
        Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    let session = Session::connect(&Settings::plain(&coordinator, "team"))
        .await
        .unwrap();
    let open = v1::ImportOpen {
        name: "large".to_owned(),
        ..v1::ImportOpen::default()
    };
    let answer = import(&session, open, content(has_arrived)).await;
    (answer, was_stored.await.ok())
}

#[tokio::test]
async fn a_large_file_arrives_whole_and_in_order() {
    let content: Vec<u8> = (0..3 * PART_BYTES + 7).map(|n| (n % 251) as u8).collect();
    let (answer, stored) = import_from(|_| content.as_slice()).await;
    answer.unwrap();
    let (open, bytes) = stored.unwrap();
    assert_eq!(open.name, "large");
    assert!(bytes == content);
}

#[tokio::test]
async fn a_file_that_breaks_off_is_not_stored() {
    let part = vec![b'x'; PART_BYTES];
    let (answer, stored) = import_from(|arrived| {
        let broken = stream::once(Box::pin(async {
            let _ = arrived.await;
            Err(io::Error::other("the disk is gone"))
        }));
        StreamReader::new(stream::iter([Ok(part.as_slice())]).chain(broken))
    })
    .await;
    assert!(answer.unwrap_err().to_string().contains("the disk is gone"));
    assert_eq!(stored, None);
}

#[test]
fn only_the_mark_ends_the_messages() {
    let (sender, received) = mpsc::channel(2);
    let mut messages = Box::pin(until_last(received));
    sender
        .try_send(Some(Message::DocumentPart(vec![1])))
        .unwrap();
    assert!(messages.next().now_or_never().flatten().is_some());
    drop(sender);
    assert!(
        messages.next().now_or_never().is_none(),
        "it ended without the mark"
    );

    let (sender, received) = mpsc::channel(2);
    let mut messages = Box::pin(until_last(received));
    sender.try_send(None).unwrap();
    assert_eq!(messages.next().now_or_never(), Some(None));
}

#[test]
fn a_hostile_name_is_harmless() {
    use crate::printable::{HOSTILE, assert_harmless};
    let warning = v1::ContentWarning {
        item_id: HOSTILE.into(),
        message: HOSTILE.into(),
    };
    assert_harmless(&warn(&[warning]).join("\n"));
}
