//! `/metrics`: what the process counted, and how large the queue is.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use tokio::time::timeout;

use crate::{
    config::ServeConfig,
    look::{Look, Queue, Since},
    metrics::{Metrics, QueueSize, show_queue},
    store::queue::QueueStats,
};

/// How long the queue's part of the page is shown, however often it is asked for.
const QUEUE_FOR: Duration = Duration::from_secs(4);

/// How long the page waits for the queue.
const PATIENCE: Duration = Duration::from_secs(2);

/// The name that namespaces have together which are not named one by one.
const OTHER: &str = "other";

/// What the page is made of.
#[derive(Debug)]
pub(crate) struct Scrape {
    queue: Queue,
    metrics: Arc<Metrics>,
    /// Models that are shown also while nothing of them is open.
    models: Vec<String>,
    /// Most namespaces that are named.
    namespaces: usize,
    /// The queue's part of the page.
    part: Look<Arc<str>>,
}

/// Answers with the page.
pub(super) async fn show(State(scrape): State<Arc<Scrape>>) -> Response {
    let mut page = scrape.metrics.page().render();
    page.push_str(&Scrape::part(&scrape).await);
    ([(CONTENT_TYPE, weir_metrics::CONTENT_TYPE)], page).into_response()
}

impl Scrape {
    /// What it is made of, as the settings say.
    pub(crate) fn new(config: &ServeConfig, queue: Queue, metrics: Arc<Metrics>) -> Self {
        Self {
            queue,
            metrics,
            models: config.model_names(),
            namespaces: config.metrics_namespaces.into(),
            part: Look::every(QUEUE_FOR),
        }
    }

    /// The queue's part of the page.
    async fn part(scrape: &Arc<Self>) -> Arc<str> {
        let own = Arc::clone(scrape);
        let make = |_| async move { own.make().await.into() };
        scrape.part.see(Since::Lately, make).await.value
    }

    /// Makes it. While the database does not answer it is left out: nothing
    /// known is another thing than nothing waiting.
    async fn make(&self) -> String {
        match timeout(PATIENCE, self.queue.see(Since::Lately)).await {
            Ok(seen) => seen.value.map_or_else(
                |_| String::new(),
                |stats| show_queue(&bounded(&stats, &self.models, self.namespaces)),
            ),
            Err(_) => String::new(),
        }
    }
}

/// The queue by namespace and model: the namespaces with most pending chunks,
/// and the others summed up.
fn bounded(
    stats: &[QueueStats],
    models: &[String],
    most: usize,
) -> BTreeMap<(String, String), QueueSize> {
    let mut pending: BTreeMap<&str, i64> = BTreeMap::new();
    for stats in stats {
        *pending.entry(&stats.namespace).or_default() += stats.chunks_pending;
    }
    let mut largest: Vec<(&str, i64)> = pending.into_iter().collect();
    largest.sort_by_key(|(_, pending)| std::cmp::Reverse(*pending));
    let named: Vec<String> = largest
        .into_iter()
        .take(most)
        .map(|(namespace, _)| namespace.to_owned())
        .collect();
    let none = |model: &String| ((OTHER.to_owned(), model.clone()), QueueSize::default());
    let mut queue: BTreeMap<_, QueueSize> = models.iter().map(none).collect();
    for stats in stats {
        let namespace = if named.contains(&stats.namespace) {
            stats.namespace.clone()
        } else {
            OTHER.to_owned()
        };
        let sum = queue.entry((namespace, stats.model.clone())).or_default();
        sum.jobs_ready += stats.jobs_ready;
        sum.jobs_delayed += stats.jobs_delayed;
        sum.jobs_running += stats.jobs_running;
        sum.chunks_pending += stats.chunks_pending;
        sum.oldest_ready_age_seconds = sum
            .oldest_ready_age_seconds
            .max(stats.oldest_ready_age_seconds);
    }
    queue
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(namespace: &str, chunks_pending: i64, age: f64) -> QueueStats {
        QueueStats {
            namespace: namespace.to_owned(),
            model: "m".to_owned(),
            jobs_ready: 1,
            jobs_delayed: 2,
            jobs_running: 3,
            chunks_pending,
            chunks_workable: 0,
            oldest_ready_age_seconds: age,
        }
    }

    fn pending(queue: &BTreeMap<(String, String), QueueSize>) -> Vec<(&str, i64)> {
        queue
            .iter()
            .map(|((namespace, _), size)| (namespace.as_str(), size.chunks_pending))
            .collect()
    }

    #[test]
    fn the_largest_namespaces_are_named_and_the_others_summed_up() {
        let all = vec![
            stats("a", 1, 9.0),
            stats("b", 30, 1.0),
            stats("c", 2, 5.0),
            stats("d", 20, 2.0),
        ];
        let queue = bounded(&all, &[], 2);
        assert_eq!(pending(&queue), [("b", 30), ("d", 20), ("other", 3)]);
        let other = queue[&("other".to_owned(), "m".to_owned())];
        assert_eq!(
            (other.jobs_ready, other.jobs_delayed, other.jobs_running),
            (2, 4, 6)
        );
        assert!((other.oldest_ready_age_seconds - 9.0).abs() < f64::EPSILON);
        assert_eq!(pending(&bounded(&all, &[], 0)), [("other", 53)]);
    }

    #[test]
    fn a_namespace_of_that_name_is_among_the_others() {
        let all = vec![stats("a", 1, 0.0), stats("other", 5, 0.0)];
        assert_eq!(pending(&bounded(&all, &[], 1)), [("other", 6)]);
    }

    #[test]
    fn a_model_with_nothing_open_is_shown_all_the_same() {
        let queue = bounded(&[], &["m".to_owned()], 20);
        assert_eq!(pending(&queue), [("other", 0)]);
    }
}
