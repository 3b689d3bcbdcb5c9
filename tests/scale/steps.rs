//! What concerns all of a large source: whether others notice it, and how long
//! its longest step is.

use std::time::{Duration, Instant};

use futures::stream;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use weir_proto::v1::{
    self, import_source_request::Message as Import, job_service_client::JobServiceClient,
    source_service_client::SourceServiceClient,
};
use weir_tests::bench::{
    report::{Report, percentile},
    stage::{Server, Stage},
    statements,
};

use crate::{
    Scale,
    big::{self, Big, patch},
};

/// Patches of another source a second.
const RATE: u32 = 50;

/// Items in a message of an import.
const MESSAGE: usize = 1_000;

/// The model that the source gets.
const OTHER_MODEL: &str = "other";

pub(crate) async fn run(server: &Server, scale: &Scale, report: &mut Report) -> anyhow::Result<()> {
    let models = format!("{},{OTHER_MODEL}", weir_tests::cluster::MODEL);
    let stage = Stage::set(
        server,
        &[
            ("WEIR_MODELS", models.as_str()),
            ("WEIR_RECONCILE_INTERVAL", "1h"),
        ],
    )
    .await;
    let other = big::embedded(&stage, "default", "other", 1_000).await?;
    let big = big::embedded(&stage, "default", "big", scale.chunks).await?;
    big::settle_down(stage.pool()).await?;
    let channel = stage.coordinator.connect().await;
    let mut client = SourceServiceClient::new(channel.clone());

    let seconds = Duration::from_secs_f64(scale.locked / 3.0);
    beside(&stage, &other, "nothing else", report, async {
        tokio::time::sleep(seconds).await;
        Ok(())
    })
    .await?;

    let whole = |what: &str| format!("{what} of {} chunks", scale.chunks);
    beside(&stage, &other, &whole("check"), report, async {
        sqlx::query("UPDATE weir.sources SET checked_at = 'epoch' WHERE id = $1")
            .bind(big.id)
            .execute(stage.pool())
            .await?;
        let begun = "SELECT count(*) FROM weir.sources WHERE name = 'big' AND checked_at > 'epoch'";
        until(&stage, begun).await;
        until(&stage, &none_of("checks", &big)).await;
        Ok(())
    })
    .await?;
    beside(&stage, &other, &whole("import"), report, async {
        import(&mut client, scale.chunks, "").await
    })
    .await?;

    let job_id: i64 = sqlx::query_scalar(
        "INSERT INTO weir.jobs (source_id, namespace, source, model, revision, trigger, first_item_id, last_item_id,
                                chunks_total, chunks_done, state, settled, finished_at)
         VALUES ($1, 'default', 'big', $2, 1, 'write', 'item', 'item~', 1, 1, 'succeeded', true, now()) RETURNING id",
    )
    .bind(big.id)
    .bind(weir_tests::cluster::MODEL)
    .fetch_one(stage.pool())
    .await?;
    beside(&stage, &other, &whole("force"), report, async {
        let force = v1::RetryJobRequest {
            job_id,
            force: true,
        };
        JobServiceClient::new(channel.clone())
            .retry_job(force)
            .await?;
        until(&stage, &none_of("forced_ranges", &big)).await;
        Ok(())
    })
    .await?;
    beside(&stage, &other, &whole("change of model"), report, async {
        import(&mut client, scale.chunks, OTHER_MODEL).await?;
        let moved =
            "SELECT count(*) FROM weir.sources WHERE name = 'big' AND chunks_to_move IS NULL";
        until(&stage, moved).await;
        Ok(())
    })
    .await?;
    beside(&stage, &other, &whole("deletion"), report, async {
        let delete = v1::DeleteSourceRequest {
            name: "big".to_owned(),
            ..v1::DeleteSourceRequest::default()
        };
        client.delete_source(delete).await?;
        for table in ["items", "chunks", "embeddings"] {
            until(&stage, &none_of(table, &big)).await;
        }
        Ok(())
    })
    .await
}

/// Whether a table has no row of a source.
fn none_of(table: &str, big: &Big) -> String {
    let id = big.id;
    format!("SELECT (NOT EXISTS (SELECT FROM weir.{table} WHERE source_id = {id}))::int")
}

/// Imports what the source has already.
async fn import(
    client: &mut SourceServiceClient<Channel>,
    chunks: i64,
    model: &str,
) -> anyhow::Result<()> {
    let open = v1::ImportOpen {
        name: "big".to_owned(),
        model: model.to_owned(),
        ..v1::ImportOpen::default()
    };
    let message = |message| v1::ImportSourceRequest {
        message: Some(message),
    };
    let open = message(Import::Open(open));
    let pages = (1..=chunks).step_by(MESSAGE).map(move |from| {
        let items = (from..=chunks).take(MESSAGE).map(big::item);
        message(Import::Items(v1::ItemList {
            items: items.collect(),
        }))
    });
    client
        .import_source(stream::iter(std::iter::once(open).chain(pages)))
        .await?;
    Ok(())
}

/// Waits until an answer is above zero.
async fn until(stage: &Stage, sql: &str) {
    while stage.ask(sql).await < 1.0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Patches another source at a steady rate while something is done, and notes
/// how long both took, and the longest statement of the coordinator.
async fn beside(
    stage: &Stage,
    other: &Big,
    what: &str,
    report: &mut Report,
    done: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    statements::begin(stage.pool()).await;
    let mut client = SourceServiceClient::new(stage.coordinator.connect().await);
    let (other, stop) = (other.clone(), CancellationToken::new());
    let stopped = stop.clone();
    let patches = tokio::spawn(async move {
        let (began, mut took) = (Instant::now(), Vec::new());
        let mut n = 0;
        while !stopped.is_cancelled() {
            sleep_until((began + Duration::from_secs(1) / RATE * n).into()).await;
            n += 1;
            let at = Instant::now();
            patch(
                &mut client,
                &other,
                "item-000000001",
                &format!("Changed at {at:?}."),
            )
            .await?;
            took.push(at.elapsed().as_secs_f64() * 1_000.0);
        }
        Ok::<_, tonic::Status>(took)
    });
    let began = Instant::now();
    done.await?;
    let lasted = began.elapsed().as_secs_f64();
    stop.cancel();
    let took = patches.await??;
    report.note(format!("{what}: until all is done"), "s", lasted);
    report.note(
        format!("{what}: longest statement"),
        "ms",
        stage
            .ask("SELECT max(max_exec_time) FROM pg_stat_statements WHERE query LIKE '%weir.%'")
            .await,
    );
    report.note(
        format!("{what}: patch of another source: p50"),
        "ms",
        percentile(&took, 0.5),
    );
    report.note(
        format!("{what}: patch of another source: p99"),
        "ms",
        percentile(&took, 0.99),
    );
    Ok(())
}
