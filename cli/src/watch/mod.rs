//! `weir watch`: how far sources are, live.

mod all;
mod bars;
mod board;
mod crowd;
mod lines;
mod progress;
mod rate;
mod screen;

use std::time::{Duration, Instant};

use clap::Args;
use tokio_stream::{StreamExt as _, StreamMap, wrappers::ReceiverStream};
use tonic::{Code, Status};
use weir_proto::v1::{self, BadgeState, WatchSourceRequest, WatchSourceResponse};

use self::{
    progress::{End, Progress},
    screen::Screen,
};
use crate::{
    connect::Session,
    failure::{self, Failure},
    output,
    sources::{self, Filter},
    stream::{Event, keep_open},
};

/// Most sources watched by name: each is a stream.
const MAX_SOURCES: usize = 64;

/// What `weir watch` understands.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// The sources; by default those of the namespace that are not complete.
    names: Vec<String>,
    /// All sources of the namespace that have something open, the busiest on top.
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// With --all: the sources of every namespace.
    #[arg(long, short = 'A', requires = "all")]
    all_namespaces: bool,
    /// Go on when nothing is open any more.
    #[arg(long)]
    follow: bool,
}

/// Watches until nothing of the sources is open. Fails when a source did not
/// become complete, or texts were rejected. When the coordinator goes away, it waits five minutes for
/// it to come back.
pub(crate) async fn watch(session: &Session, args: WatchArgs) -> Result<(), Failure> {
    if args.all {
        return all::watch(session, args.all_namespaces, args.follow).await;
    }
    let mut names = args.names;
    names.sort();
    names.dedup();
    if names.is_empty() {
        names = incomplete(session, args.follow).await?;
        if names.is_empty() {
            if !session.json {
                output::line(format!("Everything in {} is embedded.", session.namespace))?;
            }
            return Ok(());
        }
    }
    if names.len() > MAX_SOURCES {
        return Err(Failure::Usage(format!(
            "{} sources are too many to watch one by one: name up to {MAX_SOURCES} of them, or say --all",
            names.len()
        )));
    }
    run(session, names, args.follow).await
}

/// Watches these sources until nothing of them is open.
pub(crate) async fn until_settled(session: &Session, names: Vec<String>) -> Result<(), Failure> {
    run(session, names, false).await
}

/// The sources of the namespace that there is something to see of.
async fn incomplete(session: &Session, all: bool) -> Result<Vec<String>, Failure> {
    let filter = Filter {
        fields: &["source.name", "source.badge", "job.job_id"],
        ..Filter::default()
    };
    let sources = sources::list(session, &session.namespace, filter).await?;
    let is_of_interest = |summary: &v1::SourceSummary| {
        let badge = summary.source.as_ref()?.badge.as_ref()?;
        let settled = matches!(badge.state(), BadgeState::Indexed | BadgeState::Empty);
        (!settled || badge.degraded).then_some(())
    };
    Ok(sources
        .into_iter()
        .filter(|summary| all || summary.job.is_some() || is_of_interest(summary).is_some())
        .filter_map(|summary| Some(summary.source?.name))
        .collect())
}

/// A source's states: until it is settled, or without end.
fn states(
    session: &Session,
    name: &str,
    follow: bool,
) -> ReceiverStream<Event<WatchSourceResponse>> {
    let (client, namespace, name) = (session.jobs(), session.namespace.clone(), name.to_owned());
    let open = move |cursor| {
        let mut client = client.clone();
        let request = WatchSourceRequest {
            namespace: namespace.clone(),
            name: name.clone(),
            until_idle: !follow,
            cursor,
        };
        async move { client.watch_source(request).await }
    };
    keep_open(open, follow)
}

async fn run(session: &Session, names: Vec<String>, follow: bool) -> Result<(), Failure> {
    let mut streams = StreamMap::new();
    for (place, name) in names.iter().enumerate() {
        streams.insert(place, states(session, name, follow));
    }
    let mut screen = Screen::new(&names, session.json);
    let mut progress: Vec<Progress> = names.iter().map(|_| Progress::default()).collect();
    let (mut failure, mut rejected) = (None, Vec::new());
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        let next = tokio::select! {
            next = streams.next() => next,
            _ = second.tick() => {
                screen.tick(&progress);
                continue;
            }
        };
        // All streams have ended.
        let Some((place, event)) = next else { break };
        match event {
            Event::Message(state) => {
                let source = state.source.clone().unwrap_or_default();
                progress[place].update(source, Instant::now());
                screen.state(place, &state, &progress)?;
            }
            Event::Lost(reason) => screen.lost(place, &reason)?,
            Event::Ended => {
                match progress[place].end() {
                    End::Complete => {}
                    End::Rejected => rejected.push(names[place].clone()),
                    End::Incomplete => {
                        failure.get_or_insert(Failure::Incomplete);
                    }
                }
                screen.end(place, &progress[place])?;
            }
            Event::Failed(status) => {
                screen.fail(place, &fate(&status))?;
                failure = Some(status.into());
            }
        }
    }
    match failure {
        Some(failure) => Err(failure),
        None if rejected.is_empty() => Ok(()),
        None => Err(Failure::rejected(&session.namespace, &rejected)),
    }
}

/// Why a source is not watched any more.
fn fate(status: &Status) -> String {
    match status.code() {
        Code::NotFound => "not found, or deleted by now".to_owned(),
        _ => failure::describe(status),
    }
}
