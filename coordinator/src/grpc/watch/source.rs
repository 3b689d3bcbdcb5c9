//! `WatchSource`.

use std::{collections::HashSet, sync::Arc};

use tonic::Status;
use weir_proto::v1;

use super::{
    Watch,
    cursor::Cursor,
    gone,
    hub::{Follow, State},
    serve,
};
use crate::{grpc::Services, store::rows::SourceKey};

/// What is seen of a source.
#[derive(Debug)]
pub(in crate::grpc) struct SourceState {
    source_id: i64,
    source: v1::Source,
    jobs: Vec<v1::Job>,
    /// Jobs that were there at the look before, as they ended.
    ended: Vec<v1::Job>,
    /// Where a client goes on that has this.
    cursor: Cursor,
    /// Where one goes on that was there at the look before.
    before: Option<Cursor>,
}

impl SourceState {
    fn is_idle(&self) -> bool {
        let open =
            |job: &v1::Job| matches!(job.state(), v1::JobState::Queued | v1::JobState::Running);
        // What is still to be queued is not idle.
        !self.source.embedding_anew && !self.jobs.iter().any(open)
    }
}

/// Looks at the source of this row. `last`: what was seen before.
async fn look(
    services: Services,
    source_id: i64,
    key: SourceKey,
    last: Option<State<SourceState>>,
) -> State<SourceState> {
    let state = services.store.source(&key).await?;
    if state.source.id != source_id {
        // The one that is watched was deleted, and this one put in its place.
        return Err(key.not_found().into());
    }
    let jobs = state.jobs.into_iter();
    let jobs: Vec<v1::Job> = jobs.map(|job| services.wire_job(job)).collect();
    let source = services.wire_source(state.source);
    let whole = v1::WatchSourceResponse {
        source: Some(source.clone()),
        jobs,
        ..v1::WatchSourceResponse::default()
    };
    let cursor = Cursor::after(&whole, whole.jobs.iter().map(|job| job.job_id));
    let before = match last {
        // Those who had what was seen before have it still.
        Some(Ok(last)) if last.cursor == cursor => return Ok(last),
        Some(Ok(last)) => Some(last.cursor.clone()),
        Some(Err(_)) | None => None,
    };
    let ended = match &before {
        Some(before) => ended(&services, source_id, before, &whole.jobs).await?,
        None => Vec::new(),
    };
    Ok(Arc::new(SourceState {
        source_id,
        source,
        jobs: whole.jobs,
        ended,
        cursor,
        before,
    }))
}

/// The jobs that a client waits for and that are not unsettled any more, as
/// they ended.
async fn ended(
    services: &Services,
    source_id: i64,
    cursor: &Cursor,
    now: &[v1::Job],
) -> Result<Vec<v1::Job>, Status> {
    let now: HashSet<i64> = now.iter().map(|job| job.job_id).collect();
    let mut missing = cursor.jobs();
    missing.retain(|job| !now.contains(job));
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let jobs = services.store.jobs_by_id(source_id, &missing).await?;
    Ok(jobs.into_iter().map(|job| services.wire_job(job)).collect())
}

/// Streams a source that is there, from `cursor` on.
pub(in crate::grpc) fn watch_source(
    services: &Services,
    source_id: i64,
    key: SourceKey,
    until_idle: bool,
    cursor: Option<Cursor>,
) -> Watch<v1::WatchSourceResponse> {
    let hub = services.clone();
    serve(services, async move |answers| {
        let mut sent = cursor;
        let mut changes = hub.wakeup.changes(source_id);
        let shared = hub.hubs.sources.join(&source_id);
        let mut follow = Follow::new(&hub);
        loop {
            let since = follow.wait(changes.changed()).await;
            let query = |last| look(hub.clone(), source_id, key.clone(), last);
            let seen = shared.see(since, query).await;
            let Some(state) = follow.take(seen)? else {
                continue;
            };
            if sent.as_ref() != Some(&state.cursor) {
                let answer = answer(&hub, &state, sent.as_ref()).await?;
                sent = Some(state.cursor.clone());
                answers.send(Ok(answer)).await.map_err(gone)?;
            }
            if until_idle && state.is_idle() {
                return Ok(());
            }
        }
    })
}

/// What is told of a state to a client that had `sent` last.
async fn answer(
    services: &Services,
    state: &Arc<SourceState>,
    sent: Option<&Cursor>,
) -> Result<v1::WatchSourceResponse, Status> {
    let ended = match sent {
        None => Vec::new(),
        Some(sent) if Some(sent) == state.before.as_ref() => state.ended.clone(),
        // It skipped a state, or comes from another replica.
        Some(sent) => {
            let _turn = services.hubs.turns.take().await;
            ended(services, state.source_id, sent, &state.jobs).await?
        }
    };
    Ok(v1::WatchSourceResponse {
        source: Some(state.source.clone()),
        jobs: state.jobs.clone(),
        ended,
        cursor: state.cursor.to_text()?,
    })
}
