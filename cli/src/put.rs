//! `weir put`.

use std::{
    io::{self, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use futures::{Stream, stream};
use serde::Serialize;
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt as _, AsyncSeekExt as _},
    sync::mpsc,
};
use weir_proto::v1::{self, DocumentFormat, import_source_request::Message};

use crate::{
    connect::Session,
    document::{guess_format, guess_name},
    failure::Failure,
    output::{self, count},
    printable::printable,
    resend, view, watch,
};

/// Files over this size are streamed.
const STREAM_OVER_BYTES: u64 = 16 << 20;
/// How much of a streamed file travels in one message.
const PART_BYTES: usize = 1 << 20;
/// How much of a file the guess of its format reads.
const HEAD_BYTES: u64 = 64 << 10;
/// How many warnings are shown to people.
const WARNINGS_SHOWN: usize = 10;

/// What `weir put` understands.
#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// The document.
    file: PathBuf,
    /// The source's name; by default made of the file's.
    #[arg(long)]
    name: Option<String>,
    /// How to read the document; by default told from its name and content.
    #[arg(long, value_enum, default_value = "auto")]
    format: Format,
    /// The model to embed with; by default the source's, or the coordinator's
    /// for a new source.
    #[arg(long)]
    model: Option<String>,
    /// Jobs of higher priority are claimed first.
    #[arg(long, default_value = "0", value_parser = clap::value_parser!(i32).range(0..=9))]
    priority: i32,
    /// Go on to watch until everything is embedded.
    #[arg(long)]
    watch: bool,
}

/// A document's format, as an argument.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Auto,
    Openapi,
    Markdown,
    Text,
    Jsonl,
}

impl Format {
    fn resolve(self, path: &Path, head: &[u8]) -> DocumentFormat {
        match self {
            Self::Auto => guess_format(path, head),
            Self::Openapi => DocumentFormat::Openapi,
            Self::Markdown => DocumentFormat::Markdown,
            Self::Text => DocumentFormat::Text,
            Self::Jsonl => DocumentFormat::JsonLines,
        }
    }
}

/// Puts a document and tells what that changed.
pub(crate) async fn put(session: &Session, args: PutArgs) -> Result<(), Failure> {
    let Some(name) = args.name.or_else(|| guess_name(&args.file)) else {
        return Err(Failure::Usage(format!(
            "no name can be made of {}: give one with --name",
            args.file.display()
        )));
    };
    let unreadable = || format!("cannot read {}", args.file.display());
    let (mut file, size) = open(&args.file).await.with_context(unreadable)?;
    let mut head = Vec::new();
    (&mut file)
        .take(HEAD_BYTES)
        .read_to_end(&mut head)
        .await
        .with_context(unreadable)?;
    file.seek(SeekFrom::Start(0))
        .await
        .with_context(unreadable)?;

    let open = v1::ImportOpen {
        namespace: session.namespace.clone(),
        name: name.clone(),
        model: args.model.unwrap_or_default(),
        priority: args.priority,
        format: args.format.resolve(&args.file, &head).into(),
        item_id: String::new(),
        expected_revision: None,
    };
    let mut content = Vec::new();
    if size <= STREAM_OVER_BYTES {
        content.reserve(size as usize);
        file.read_to_end(&mut content)
            .await
            .with_context(unreadable)?;
    }
    drop(file);
    let answer = resend::until_answered(
        async || resend::revision(session, &name).await,
        async |revision| {
            let open = v1::ImportOpen {
                expected_revision: Some(revision),
                ..open.clone()
            };
            if size <= STREAM_OVER_BYTES {
                return put_whole(session, open, content.clone()).await;
            }
            let (file, _) = self::open(&args.file).await.with_context(unreadable)?;
            let answer = import(session, open, file).await;
            answer.map_err(|failure| match failure {
                Failure::Other(error) => Failure::Other(error.context(unreadable())),
                other => other,
            })
        },
    )
    .await?;
    tell(session, &answer)?;
    if args.watch {
        watch::until_settled(session, vec![name]).await
    } else {
        Ok(())
    }
}

async fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = File::open(path).await?;
    let meta = file.metadata().await?;
    if meta.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok((file, meta.len()))
}

async fn put_whole(
    session: &Session,
    open: v1::ImportOpen,
    content: Vec<u8>,
) -> Result<v1::ImportSourceResponse, Failure> {
    let document = v1::Document {
        format: open.format,
        content,
        item_id: open.item_id,
    };
    let request = v1::PutSourceRequest {
        namespace: open.namespace,
        name: open.name,
        model: open.model,
        content: Some(v1::put_source_request::Content::Document(document)),
        priority: open.priority,
        expected_revision: open.expected_revision,
    };
    let answer = session.sources().put_source(request).await?.into_inner();
    Ok(v1::ImportSourceResponse {
        source: answer.source,
        change: answer.change,
        jobs: answer.jobs,
        warnings: answer.warnings,
    })
}

/// Streams a file. The coordinator stores what it has when the stream is
/// closed, so that happens only at the end of the file: when reading fails, the
/// call is cancelled with the stream still open, and nothing is stored.
async fn import(
    session: &Session,
    open: v1::ImportOpen,
    mut file: impl AsyncRead + Unpin,
) -> Result<v1::ImportSourceResponse, Failure> {
    let (parts, received) = mpsc::channel(2);
    let reader = async move {
        let mut next = Some(Message::Open(open));
        loop {
            let last = next.is_none();
            // Nobody takes it when the call has ended; its outcome says why.
            if parts.send(next).await.is_err() || last {
                return Ok(());
            }
            next = read_part(&mut file).await?;
        }
    };
    let mut client = session.sources();
    tokio::select! {
        Err(error) = reader => Err(io::Error::into(error)),
        answer = client.import_source(until_last(received)) => Ok(answer?.into_inner()),
    }
}

/// The messages up to the `None` that marks the end. A sender that goes away
/// without one has failed, and the call is about to be cancelled: until it is,
/// this must not look like the end.
fn until_last(
    received: mpsc::Receiver<Option<Message>>,
) -> impl Stream<Item = v1::ImportSourceRequest> + Send + 'static {
    stream::unfold(received, |mut received| async {
        let Some(next) = received.recv().await else {
            return std::future::pending().await;
        };
        let message = Some(next?);
        Some((v1::ImportSourceRequest { message }, received))
    })
}

/// Reads the next part; nothing at the end of the file.
async fn read_part(file: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Message>> {
    let mut part = Vec::with_capacity(PART_BYTES);
    file.take(PART_BYTES as u64).read_to_end(&mut part).await?;
    Ok((!part.is_empty()).then_some(Message::DocumentPart(part)))
}

fn tell(session: &Session, answer: &v1::ImportSourceResponse) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Answer {
        source: view::WrittenSource,
        change: view::Change,
        jobs: Vec<view::Job>,
        warnings: Vec<view::Warning>,
    }

    let source = answer.source.clone().unwrap_or_default();
    let change = answer.change.unwrap_or_default();
    if session.json {
        return Ok(output::json(&Answer {
            source: (&source).into(),
            change: (&change).into(),
            jobs: view::all(&answer.jobs),
            warnings: view::all(&answer.warnings),
        })?);
    }
    output::line(format!(
        "{}/{} is at revision {}, for {}: {}.",
        printable(&source.namespace),
        printable(&source.name),
        source.revision,
        printable(&source.model),
        describe(&change, answer.jobs.len())
    ))?;
    for line in warn(&answer.warnings) {
        output::line(line)?;
    }
    Ok(())
}

fn describe(change: &v1::SourceChange, jobs: usize) -> String {
    let mut parts = vec![count(
        change.items_added + change.items_changed + change.items_unchanged,
        "item",
    )];
    for (number, what) in [
        (change.items_added, "new"),
        (change.items_changed, "changed"),
        (change.items_deleted, "deleted"),
    ] {
        if number > 0 {
            parts.push(format!("{number} {what}"));
        }
    }
    if parts.len() == 1 {
        parts.push("none changed".to_owned());
    }
    parts.push(match change.chunks_pending {
        0 => "nothing new to embed".to_owned(),
        pending => format!(
            "{} to embed in {}",
            count(pending, "chunk"),
            count(jobs as i64, "job")
        ),
    });
    if change.jobs_superseded > 0 {
        parts.push(format!(
            "{} superseded",
            count(change.jobs_superseded, "job")
        ));
    }
    parts.join(", ")
}

fn warn(warnings: &[v1::ContentWarning]) -> Vec<String> {
    let mut lines: Vec<String> = warnings
        .iter()
        .take(WARNINGS_SHOWN)
        .map(|warning| {
            format!(
                "warning: {}: {}",
                printable(&warning.item_id),
                printable(&warning.message)
            )
        })
        .collect();
    if warnings.len() > WARNINGS_SHOWN {
        lines.push(format!(
            "… {} warnings in all; --json lists them",
            warnings.len()
        ));
    }
    lines
}

#[cfg(test)]
mod tests;
