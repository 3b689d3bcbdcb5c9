//! Pages of metrics for Prometheus. Each process, and each worker of a process
//! that has several, keeps a page of its own: nothing here is global.
//!
//! Handles are made once and are atomics from then on; a histogram's keeps what
//! is observed until the page is rendered or [kept](Page::keep).

use std::{convert::Infallible, time::Duration};

pub use metrics::{Counter, Gauge, Histogram};
use metrics::{Key, Label, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// The type of content that a page is.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of the buckets of every histogram, in seconds: from a write of
/// one row to a call that waits for as long as it may.
const BUCKETS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// How often what histograms keep is added up, should nobody ask for the page.
const KEEP_EVERY: Duration = Duration::from_secs(5);

/// What all registrations say of their origin; the page leaves it out.
const METADATA: Metadata<'static> = Metadata::new("weir", Level::INFO, None);

/// A label of one series: its name and its value.
pub type Tag<'a> = (&'static str, &'a str);

/// A metric: its name, with the unit as its ending, and what it says.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    name: &'static str,
    help: &'static str,
}

impl Metric {
    /// Names and describes a metric.
    pub const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help }
    }

    fn key(&self, tags: &[Tag<'_>]) -> Key {
        let labels = tags
            .iter()
            .map(|(name, value)| Label::new(*name, (*value).to_owned()));
        Key::from_parts(self.name, labels.collect::<Vec<_>>())
    }
}

/// What is shown together.
#[derive(Debug)]
pub struct Page {
    /// Unset where nobody will ask for it: then nothing is kept.
    shown: Option<(PrometheusRecorder, PrometheusHandle)>,
}

impl Default for Page {
    fn default() -> Self {
        let builder = PrometheusBuilder::new();
        // It refuses no buckets but none at all.
        let builder = builder.set_buckets(&BUCKETS).unwrap_or_default();
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        Self {
            shown: Some((recorder, handle)),
        }
    }
}

impl Page {
    /// A page that nobody will ask for. Its handles do nothing.
    pub const fn unseen() -> Self {
        Self { shown: None }
    }

    /// A count that only rises.
    pub fn counter(&self, metric: &Metric, tags: &[Tag<'_>]) -> Counter {
        let Some((recorder, _)) = &self.shown else {
            return Counter::noop();
        };
        recorder.describe_counter(metric.name.into(), None, metric.help.into());
        recorder.register_counter(&metric.key(tags), &METADATA)
    }

    /// A value of now.
    pub fn gauge(&self, metric: &Metric, tags: &[Tag<'_>]) -> Gauge {
        let Some((recorder, _)) = &self.shown else {
            return Gauge::noop();
        };
        recorder.describe_gauge(metric.name.into(), None, metric.help.into());
        recorder.register_gauge(&metric.key(tags), &METADATA)
    }

    /// How long something takes, in seconds.
    pub fn histogram(&self, metric: &Metric, tags: &[Tag<'_>]) -> Histogram {
        let Some((recorder, _)) = &self.shown else {
            return Histogram::noop();
        };
        recorder.describe_histogram(metric.name.into(), None, metric.help.into());
        recorder.register_histogram(&metric.key(tags), &METADATA)
    }

    /// The page, in Prometheus' text format.
    pub fn render(&self) -> String {
        self.shown
            .as_ref()
            .map_or_else(String::new, |(_, handle)| handle.render())
    }

    /// Adds up what histograms keep, so that a page which nobody asks for does
    /// not grow. Never returns.
    pub async fn keep(&self) -> Infallible {
        let Some((_, handle)) = &self.shown else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(KEEP_EVERY).await;
            handle.run_upkeep();
        }
    }
}

/// Counts something in a gauge for as long as it lives.
#[derive(Debug)]
pub struct Open(Gauge);

impl Open {
    /// One more.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLS: Metric = Metric::new("weir_calls_total", "Calls.");
    const OPEN: Metric = Metric::new("weir_open", "Open.");
    const WAIT: Metric = Metric::new("weir_wait_seconds", "Wait.");

    #[test]
    fn a_page_shows_what_was_registered_also_before_anything_happened() {
        let page = Page::default();
        let calls = page.counter(&CALLS, &[("method", "Put")]);
        let wait = page.histogram(&WAIT, &[]);
        let text = page.render();
        assert!(text.contains("# HELP weir_calls_total Calls.\n# TYPE weir_calls_total counter"));
        assert!(
            text.contains("weir_calls_total{method=\"Put\"} 0\n"),
            "{text}"
        );
        assert!(text.contains("weir_wait_seconds_count 0\n"), "{text}");
        calls.increment(2);
        wait.record(0.004);
        let text = page.render();
        assert!(
            text.contains("weir_calls_total{method=\"Put\"} 2\n"),
            "{text}"
        );
        assert!(
            text.contains("weir_wait_seconds_bucket{le=\"0.0025\"} 0\n"),
            "{text}"
        );
        assert!(
            text.contains("weir_wait_seconds_bucket{le=\"0.005\"} 1\n"),
            "{text}"
        );
    }

    #[test]
    fn what_is_open_is_counted_for_as_long_as_it_lives() {
        let page = Page::default();
        let gauge = page.gauge(&OPEN, &[]);
        let first = Open::new(&gauge);
        let _second = Open::new(&gauge);
        drop(first);
        assert!(page.render().contains("weir_open 1\n"));
    }

    #[test]
    fn an_unseen_page_keeps_nothing() {
        let page = Page::unseen();
        page.counter(&CALLS, &[]).increment(1);
        page.histogram(&WAIT, &[]).record(1.0);
        assert_eq!(page.render(), "");
    }
}
