//! `ExternalScaler`: tells KEDA how much work a pool of workers has, so that
//! their number follows it, from none at all.

use std::{collections::HashMap, ops::RangeInclusive};

use tonic::{Request, Response, Status};
use weir_proto::externalscaler::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec,
    MetricValue, ScaledObjectRef, external_scaler_server::ExternalScaler,
};

use super::{
    Services,
    door::Door,
    watch::{Follow, Watch, gone, serve},
};
use crate::{
    job::pool::{ACTIVATION_CHUNKS, CHUNKS_PER_WORKER, Pool},
    store::queue::Share,
};

/// The one metric there is.
const METRIC: &str = "weir-pending-chunks";

/// Keys of the metadata that KEDA reads itself and hands on all the same.
const OF_KEDA: [&str; 4] = ["scalerAddress", "enableTLS", "unsafeSsl", "tlsCertFile"];

/// Tells how much work pools of workers have.
#[derive(Debug, Clone)]
pub(crate) struct Scaler(pub(crate) Services);

/// What a trigger's metadata asks about.
#[derive(Debug)]
struct Trigger {
    share: Share,
    pool: Pool,
}

impl Scaler {
    /// Reads a trigger, or names every key that is wrong with it.
    fn trigger(&self, scaled: Option<ScaledObjectRef>) -> Result<Trigger, Status> {
        let mut metadata = scaled.unwrap_or_default().scaler_metadata;
        metadata.retain(|key, _| !OF_KEDA.contains(&key.as_str()));
        let mut door = Door::default();
        let models = list(&mut metadata, "models").unwrap_or_default();
        if models.is_empty() {
            door.refuse("models", "must name the pool's models, separated by commas");
        }
        for model in &models {
            if !self.0.models.contains(model) {
                let known = self.0.models.join(", ");
                let fault = format!("{model:?} is not a model of this coordinator; it has {known}");
                door.refuse("models", fault);
            }
        }
        let namespaces = list(&mut metadata, "namespaces");
        let namespaces = namespaces.map(|these| {
            let these = these.into_iter();
            these
                .map(|name| door.checked_namespace("namespaces", name))
                .collect()
        });
        let otherwise = Pool::default();
        let pool = Pool {
            chunks_per_worker: number(
                &mut door,
                metadata.remove("chunksPerWorker"),
                ("chunksPerWorker", CHUNKS_PER_WORKER),
            )
            .unwrap_or(otherwise.chunks_per_worker),
            activation_chunks: number(
                &mut door,
                metadata.remove("activationChunks"),
                ("activationChunks", ACTIVATION_CHUNKS),
            )
            .unwrap_or(otherwise.activation_chunks),
        };
        let mut unknown: Vec<String> = metadata.into_keys().collect();
        unknown.sort_unstable();
        for key in unknown {
            door.refuse(
                key,
                "is not known; there are models, namespaces, chunksPerWorker and activationChunks",
            );
        }
        door.close()?;
        let share = Share { models, namespaces };
        Ok(Trigger { share, pool })
    }

    /// Chunks of its share that are to be embedded, as of a moment ago.
    async fn pending(&self, trigger: &Trigger) -> Result<i64, Status> {
        let figures = self.0.queue.lately().await?;
        Ok(trigger.share.workable_chunks(&figures.stats))
    }

    /// Tells whether the pool is active, at once and whenever it changes.
    fn tell(&self, trigger: Trigger) -> Watch<IsActiveResponse> {
        let this = self.clone();
        serve(&self.0, async move |answers| {
            // Taken before the first look, so that nothing falls between.
            let mut queue = this.0.wakeup.queue();
            let mut told = None;
            let mut follow = Follow::new(&this.0);
            loop {
                let since = follow.wait(queue.changed()).await;
                let Some(figures) = follow.take(this.0.queue.see(since).await)? else {
                    continue;
                };
                let pending = trigger.share.workable_chunks(&figures.stats);
                let result = trigger.pool.is_active(pending);
                if told != Some(result) {
                    told = Some(result);
                    let answer = IsActiveResponse { result };
                    answers.send(Ok(answer)).await.map_err(gone)?;
                }
            }
        })
    }
}

/// The entries of a list, if it is there.
fn list(metadata: &mut HashMap<String, String>, key: &str) -> Option<Vec<String>> {
    let text = metadata.remove(key)?;
    let entries = text.split(',').map(str::trim);
    let entries = entries.filter(|entry| !entry.is_empty());
    Some(entries.map(str::to_owned).collect())
}

/// A number in its range, if it is there.
fn number(
    door: &mut Door,
    text: Option<String>,
    (key, range): (&str, RangeInclusive<i64>),
) -> Option<i64> {
    let text = text?;
    let number = text.parse().ok().filter(|number| range.contains(number));
    if number.is_none() {
        let fault = format!(
            "must be a whole number, {} to {}",
            range.start(),
            range.end()
        );
        door.refuse(key, fault);
    }
    number
}

#[tonic::async_trait]
impl ExternalScaler for Scaler {
    type StreamIsActiveStream = Watch<IsActiveResponse>;

    async fn is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        let trigger = self.trigger(Some(request.into_inner()))?;
        let pending = self.pending(&trigger).await?;
        let result = trigger.pool.is_active(pending);
        Ok(Response::new(IsActiveResponse { result }))
    }

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        let trigger = self.trigger(Some(request.into_inner()))?;
        Ok(Response::new(self.tell(trigger)))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        let target = self.trigger(Some(request.into_inner()))?.pool;
        let spec = MetricSpec {
            metric_name: METRIC.to_owned(),
            target_size: target.chunks_per_worker,
            target_size_float: target.chunks_per_worker as f64,
        };
        let metric_specs = vec![spec];
        Ok(Response::new(GetMetricSpecResponse { metric_specs }))
    }

    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        let request = request.into_inner();
        let trigger = self.trigger(request.scaled_object_ref)?;
        if request.metric_name != METRIC {
            let mut door = Door::default();
            door.refuse("metricName", format!("must be {METRIC:?}"));
            door.close()?;
        }
        let pending = self.pending(&trigger).await?;
        let value = MetricValue {
            metric_name: METRIC.to_owned(),
            metric_value: pending,
            metric_value_float: pending as f64,
        };
        let metric_values = vec![value];
        Ok(Response::new(GetMetricsResponse { metric_values }))
    }
}
