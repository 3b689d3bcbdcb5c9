//! `WatchJob`.

use std::sync::Arc;

use weir_proto::v1;

use super::{
    Watch,
    cursor::Cursor,
    gone,
    hub::{Follow, State},
    serve,
};
use crate::{
    grpc::Services,
    store::{Scope, rows::Job},
};

async fn look(services: Services, scope: Scope, job_id: i64) -> State<v1::Job> {
    let job = services.store.job(&scope, job_id).await?;
    Ok(Arc::new(services.wire_job(job)))
}

fn is_over(job: &v1::Job) -> bool {
    !matches!(job.state(), v1::JobState::Queued | v1::JobState::Running)
}

/// Streams a job that is there, from `cursor` on.
pub(in crate::grpc) fn watch_job(
    services: &Services,
    job: &Job,
    cursor: Option<Cursor>,
) -> Watch<v1::WatchJobResponse> {
    let (hub, job_id, source_id) = (services.clone(), job.id, job.source_id);
    let scope = job.scope();
    serve(services, async move |answers| {
        let mut sent = cursor.map(|cursor| cursor.digest);
        let mut changes = hub.wakeup.changes(source_id);
        let shared = hub.hubs.jobs.join(&job_id);
        let mut follow = Follow::new(&hub);
        loop {
            let since = follow.wait(changes.changed()).await;
            let seen = shared
                .see(since, |_| look(hub.clone(), scope.clone(), job_id))
                .await;
            let Some(job) = follow.take(seen)? else {
                continue;
            };
            let cursor = Cursor::after(&*job, []);
            if sent != Some(cursor.digest) {
                sent = Some(cursor.digest);
                let answer = v1::WatchJobResponse {
                    job: Some((*job).clone()),
                    cursor: cursor.to_text()?,
                };
                answers.send(Ok(answer)).await.map_err(gone)?;
            }
            if is_over(&job) {
                return Ok(());
            }
        }
    })
}
