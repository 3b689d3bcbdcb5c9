//! `/metrics`: what the process counted, and how large the queue is.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use tokio::time::{Instant, timeout};

use crate::{
    config::ServeConfig,
    look::{Figures, Queue},
    metrics::{Metrics, QueueSize, show_queue, show_queue_age},
    store::queue::QueueStats,
};

/// How long the page waits for a first look at the queue.
const PATIENCE: Duration = Duration::from_secs(3);

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
    /// The queue's part of the page, and when it was so.
    part: Mutex<Option<(Instant, Arc<str>)>>,
}

/// Answers with the page.
pub(super) async fn show(State(scrape): State<Arc<Scrape>>) -> Response {
    let mut page = scrape.metrics.page().render();
    // Left out where nothing is known: that is another thing than nothing waiting.
    if let Ok(Some((age, figures))) = timeout(PATIENCE, scrape.queue.known()).await {
        page.push_str(&show_queue_age(age));
        page.push_str(&figures.map(|it| scrape.part(&it)).unwrap_or_default());
    }
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
            part: Mutex::default(),
        }
    }

    /// The queue's part of the page, made once of each look.
    fn part(&self, figures: &Figures) -> Arc<str> {
        let mut last = self.part.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((as_of, part)) if *as_of == figures.as_of => Arc::clone(part),
            _ => {
                let sizes = bounded(&figures.stats, &self.models, self.namespaces);
                let part: Arc<str> = show_queue(&sizes).into();
                *last = Some((figures.as_of, Arc::clone(&part)));
                part
            }
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
    let open = || stats.iter().filter(|it| it.jobs_open() > 0);
    for stats in open() {
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
    for stats in open() {
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
            oldest_ready_age_seconds: age,
            ..QueueStats::default()
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
    fn what_is_not_open_any_more_is_not_shown() {
        let left = QueueStats {
            namespace: "a".to_owned(),
            jobs_failed: 1,
            chunks_left: 3,
            ..QueueStats::default()
        };
        assert_eq!(pending(&bounded(&[left], &[], 1)), []);
    }

    #[test]
    fn a_model_with_nothing_open_is_shown_all_the_same() {
        let queue = bounded(&[], &["m".to_owned()], 20);
        assert_eq!(pending(&queue), [("other", 0)]);
    }
}
