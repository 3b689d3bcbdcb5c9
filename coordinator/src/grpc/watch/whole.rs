//! `WatchStatus`.

use std::time::Duration;

use tokio::sync::watch;
use tonic::Status;
use weir_proto::v1;

use super::{
    Watch, gone,
    hub::{Look, Seen, next},
    serve,
};
use crate::grpc::{Services, overview};

/// Least time between two looks at the whole.
const PAUSE: Duration = Duration::from_secs(1);

struct LookAtAll {
    namespace: Option<String>,
    changes: watch::Receiver<()>,
}

impl Look for LookAtAll {
    type State = v1::GetStatusResponse;

    async fn look(
        &mut self,
        services: &Services,
        _: Option<&Self::State>,
    ) -> Result<Self::State, Status> {
        self.changes.mark_unchanged();
        Ok(overview::status(services, self.namespace.as_deref()).await?)
    }

    async fn changed(&mut self) {
        let _ = self.changes.changed().await;
    }

    fn pause(&self) -> Duration {
        PAUSE
    }
}

/// Streams how a namespace, or all of them, stands.
pub(in crate::grpc) fn watch_status(
    services: &Services,
    namespace: Option<String>,
) -> Watch<v1::WatchStatusResponse> {
    let hub = services.clone();
    serve(services, async move |answers| {
        let mut sent = None;
        loop {
            let mut states = join(&hub, namespace.as_ref());
            while let Some(seen) = next(&mut states).await {
                let now = seen?;
                if sent.as_ref() != Some(&now) {
                    let answer = v1::WatchStatusResponse {
                        status: Some((*now).clone()),
                    };
                    sent = Some(now);
                    answers.send(Ok(answer)).await.map_err(gone)?;
                }
            }
        }
    })
}

fn join(
    services: &Services,
    namespace: Option<&String>,
) -> watch::Receiver<Seen<v1::GetStatusResponse>> {
    let key = namespace.cloned();
    services.hubs.whole.join(services, &key, || LookAtAll {
        namespace: key.clone(),
        changes: services.wakeup.any_change(),
    })
}
