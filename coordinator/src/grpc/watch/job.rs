//! `WatchJob`.

use tonic::Status;
use weir_proto::v1;

use super::{
    Watch,
    cursor::Cursor,
    gone,
    hub::{Look, next},
    serve,
};
use crate::{
    grpc::{Services, convert::wire_job},
    store::rows::Job,
    wakeup::Subscription,
};

struct LookAtJob {
    job_id: i64,
    changes: Subscription,
}

impl Look for LookAtJob {
    type State = v1::Job;

    async fn look(&mut self, services: &Services, _: Option<&v1::Job>) -> Result<v1::Job, Status> {
        let job = services.store.job(self.job_id).await?;
        Ok(wire_job(job, services.policy.max_attempts))
    }

    async fn changed(&mut self) {
        self.changes.changed().await;
    }

    fn is_last(job: &v1::Job) -> bool {
        is_over(job)
    }
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
    serve(services, async move |answers| {
        let mut sent = cursor.map(|cursor| cursor.digest);
        loop {
            // The place in line is taken before the first look, so that no change falls between.
            let mut states = hub.hubs.jobs.join(&hub, &job_id, || LookAtJob {
                job_id,
                changes: hub.wakeup.changes(source_id),
            });
            while let Some(seen) = next(&mut states).await {
                let job = seen?;
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
        }
    })
}
