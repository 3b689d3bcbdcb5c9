//! What is told of a queue, however many jobs are open.

use std::time::Instant;

use weir_proto::v1::{self, job_service_client::JobServiceClient};
use weir_tests::{
    bench::{
        report::{Report, percentile},
        stage::{Server, Stage},
    },
    clients,
    cluster::MODEL,
};

use crate::{Scale, big};

/// Answers that are timed.
const ANSWERS: usize = 50;

pub(crate) async fn run(server: &Server, scale: &Scale, report: &mut Report) -> anyhow::Result<()> {
    for open in [(scale.open / 2_000).max(1), scale.open] {
        let stage = Stage::set(server, &[]).await;
        sqlx::query(
            "INSERT INTO weir.jobs (source_id, namespace, source, model, revision, trigger, first_item_id,
                                    last_item_id, chunks_total)
             SELECT n, 'namespace-' || n % 100, 'source-' || n, $1, 1, 'write', 'a', 'z', 1
             FROM generate_series(1, $2) n",
        )
        .bind(MODEL)
        .bind(open)
        .execute(stage.pool())
        .await?;
        big::settle_down(stage.pool()).await?;
        let mut client = JobServiceClient::new(stage.coordinator.connect().await);
        let http = clients::http();
        let page = format!("{}/metrics", stage.coordinator.url());
        let (mut pages, mut answers) = (Vec::new(), Vec::new());
        for _ in 0..ANSWERS {
            let began = Instant::now();
            let text = http.get(&page).send().await?.text().await?;
            pages.push(began.elapsed().as_secs_f64() * 1_000.0);
            anyhow::ensure!(
                text.contains("weir_queue_jobs"),
                "the page tells of the queue"
            );
            let began = Instant::now();
            client
                .get_queue_stats(v1::GetQueueStatsRequest::default())
                .await?;
            answers.push(began.elapsed().as_secs_f64() * 1_000.0);
        }
        for (name, took) in [("/metrics", pages), ("GetQueueStats", answers)] {
            report.note(
                format!("{name}, {open} open jobs: p50"),
                "ms",
                percentile(&took, 0.5),
            );
            report.note(
                format!("{name}, {open} open jobs: longest"),
                "ms",
                percentile(&took, 1.0),
            );
        }
    }
    Ok(())
}
