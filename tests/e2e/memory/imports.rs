//! What imports gather of documents that come in parts.

use futures::future::select_all;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use weir_proto::{
    limits::MAX_CLIENT_MESSAGE_BYTES,
    v1::{self, import_source_request::Message as Part},
};
use weir_tests::{
    PATIENCE,
    clients::{Weir, item, put_items},
};

/// So small that nobody counts a part by itself.
const SMALL_PART: usize = 4_000;

/// A document on its way, whose client says nothing after what it sent.
struct Import {
    parts: mpsc::Sender<v1::ImportSourceRequest>,
    answer: JoinHandle<Status>,
}

impl Import {
    fn open(weir: &Weir) -> Self {
        let (parts, receiver) = mpsc::channel(1);
        let mut sources = weir.sources();
        let answer = tokio::spawn(async move {
            let answered = sources.import_source(ReceiverStream::new(receiver)).await;
            answered.expect_err("a document that is no good, or too much")
        });
        Self { parts, answer }
    }

    /// Sends so many blanks in parts of this size, or as many as are taken.
    async fn send(&self, bytes: usize, part: usize) {
        let open = Part::Open(v1::ImportOpen {
            name: "much".to_owned(),
            format: v1::DocumentFormat::Text.into(),
            item_id: "a".to_owned(),
            ..v1::ImportOpen::default()
        });
        let blanks = (0..bytes / part).map(|_| Part::DocumentPart(vec![b' '; part]));
        for message in [open].into_iter().chain(blanks) {
            let message = Some(message);
            let request = v1::ImportSourceRequest { message };
            if self.parts.send(request).await.is_err() {
                return;
            }
        }
    }
}

#[tokio::test]
async fn the_largest_document_is_imported_in_parts() {
    let weir = Weir::start().await;
    let import = Import::open(&weir);
    import.send(MAX_CLIENT_MESSAGE_BYTES, 1 << 20).await;
    drop(import.parts);
    let status = timeout(PATIENCE, import.answer).await.unwrap().unwrap();
    // All of it was taken in, and then seen to be blank.
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
}

#[tokio::test]
async fn what_many_imports_gather_is_in_memory_that_was_taken_for_it() {
    let weir = Weir::start().await;
    let imports: Vec<Import> = (0..200).map(|_| Import::open(&weir)).collect();
    let sending = imports
        .iter()
        .map(|import| import.send(1 << 20, SMALL_PART));
    futures::future::join_all(sending).await;
    // There is room for a few of them.
    // Those that there is room for wait for more.
    let imports = imports.into_iter().map(|it| (it.parts, it.answer));
    let (_parts, mut open): (Vec<_>, Vec<_>) = imports.unzip();
    for _ in 0..100 {
        let next = timeout(PATIENCE, select_all(open)).await;
        let (status, _, others) = next.expect("what is too much is refused");
        assert_eq!(status.unwrap().code(), Code::Unavailable);
        open = others;
    }
}

#[tokio::test]
async fn imports_that_bring_nothing_more_give_way_to_others() {
    let weir = Weir::start().await;
    let mut imports: Vec<Import> = Vec::new();
    // Until there is no memory left for another.
    while !imports.iter().any(|import| import.answer.is_finished()) {
        assert!(imports.len() < 100, "none is refused");
        let import = Import::open(&weir);
        import.send(2 << 20, SMALL_PART).await;
        imports.push(import);
    }
    // More than is left of what the refused one had; it is taken in, and then seen to be no good.
    let text = "x".repeat(1_000_000);
    let items = (0..6).map(|n| item(&n.to_string(), &text));
    let put = put_items("middling", items.chain([item("z", "")]).collect());
    let status = weir.sources().put_source(put).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let ended = imports.remove(0).answer;
    let status = timeout(PATIENCE, ended).await.unwrap().unwrap();
    assert!(status.message().contains("too slowly"), "{status:?}");
}
