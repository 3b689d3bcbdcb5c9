//! `weir watch`: how far sources are, live.

mod progress;
mod screen;
mod stream;

use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use tokio::{sync::mpsc, task::JoinSet};
use tonic::Code;

use self::{
    progress::{Outcome, Progress},
    screen::Screen,
    stream::Event,
};
use crate::{connect::Session, failure::Failure, output, sources};

/// Most sources watched at once: each is a stream.
const MAX_SOURCES: usize = 64;

/// What `weir watch` understands.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// The sources; by default those of the namespace that are not complete.
    names: Vec<String>,
    /// Go on when nothing is open any more.
    #[arg(long)]
    follow: bool,
}

/// Watches until nothing of the sources is open. Fails when a source did not
/// become complete. When the coordinator goes away, it waits five minutes for
/// it to come back.
pub(crate) async fn watch(session: &Session, args: WatchArgs) -> Result<(), Failure> {
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
            "{} sources are too many to watch: name up to {MAX_SOURCES} of them",
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
    let sources = sources::list(session, &session.namespace).await?;
    Ok(sources
        .into_iter()
        .filter_map(|summary| {
            let source = summary.source?;
            let settled = source.chunks_embedded + source.chunks_rejected >= source.chunks;
            (all || !settled || summary.job.is_some()).then_some(source.name)
        })
        .collect())
}

async fn run(session: &Session, names: Vec<String>, follow: bool) -> Result<(), Failure> {
    let (sender, mut events) = mpsc::channel(64);
    let mut streams = JoinSet::new();
    for (place, name) in names.iter().enumerate() {
        let (session, events) = (session.clone(), sender.clone());
        streams.spawn(stream::watch(session, name.clone(), follow, place, events));
    }
    drop(sender);
    let mut screen = Screen::new(&names, session.json);
    let mut progress: Vec<Progress> = names.iter().map(|_| Progress::default()).collect();
    let mut failure = None;
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            _ = second.tick() => {
                screen.tick(&progress);
                continue;
            }
        };
        // All streams have ended.
        let Some(event) = event else { break };
        match event {
            Event::State(place, state) => {
                progress[place].update((*state).clone(), Instant::now());
                screen.state(place, &names[place], &state, &progress[place])?;
            }
            Event::Lost(place, reason) => screen.lost(place, &names[place], &reason)?,
            Event::Settled(place) => {
                let progress = &progress[place];
                let mut verdict = progress.verdict();
                if progress.outcome() == Outcome::Incomplete {
                    failure.get_or_insert(Failure::Incomplete);
                    if let Some(trouble) = progress.trouble(SystemTime::now()) {
                        verdict = format!("{verdict}: {trouble}");
                    }
                }
                screen.end(place, &names[place], &verdict)?;
            }
            Event::Failed(place, status) => {
                let text = match status.code() {
                    Code::NotFound => "not found, or deleted by now".to_owned(),
                    _ => crate::failure::describe(&status),
                };
                screen.end(place, &names[place], &text)?;
                failure = Some(status.into());
            }
        }
    }
    failure.map_or(Ok(()), Err)
}
