//! How long one thing takes: a source from its put to its vector, and a claim
//! beside a long history.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sqlx::AssertSqlSafe;
use tokio::{task::JoinSet, time::sleep_until};
use tonic::transport::Channel;
use weir_proto::v1::{self, worker_service_client::WorkerServiceClient};
use weir_tests::{
    bench::{
        report::{Report, percentile},
        stage::{Cpu, Server, Stage},
        statements,
    },
    clients::seconds,
    cluster::MODEL,
};

use crate::scenarios::{Scale, put};

/// Sources a second that are put at a steady rate, whatever becomes of them.
const RATE: u32 = 500;

/// From the put of a source of one chunk to the commit of its vector: one after
/// the other, and at a steady rate.
pub(crate) async fn arrivals(
    server: &Server,
    scale: &Scale,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut stage = Stage::set(server, &[]).await;
    stage.worker(768, Duration::ZERO, &[]);
    let channel = stage.coordinator.connect().await;
    // Whatever is done for the first time is done by now.
    for n in 0..scale.arrivals / 10 {
        put(channel.clone(), format!("warm-{n:07}"), 1).await?;
    }
    stage.done().await;

    let mut put_at = Vec::new();
    for n in 0..scale.arrivals / 10 {
        put_at.push(SystemTime::now());
        put(channel.clone(), format!("idle-{n:07}"), 1).await?;
        stage.done().await;
    }
    note(&stage, "idle", &put_at, report).await?;

    if server.statements {
        statements::begin(stage.pool()).await;
    }
    let before = Cpu::of(server, &stage);
    let (began, mut puts, mut put_at) = (Instant::now(), JoinSet::new(), Vec::new());
    for n in 0..scale.arrivals {
        sleep_until((began + Duration::from_secs(1) / RATE * n as u32).into()).await;
        put_at.push(SystemTime::now());
        puts.spawn(put(channel.clone(), format!("busy-{n:07}"), 1));
    }
    while let Some(ended) = puts.join_next().await {
        ended??;
    }
    stage.done().await;
    if server.statements {
        statements::print(stage.pool(), "busy", scale.arrivals as f64).await;
    }
    before.note_since(
        server,
        &stage,
        "put to vector, busy",
        ("µs/job", scale.arrivals as f64),
        report,
    );
    note(&stage, "busy", &put_at, report).await
}

/// Notes how long sources took whose names begin so.
async fn note(
    stage: &Stage,
    prefix: &str,
    put_at: &[SystemTime],
    report: &mut Report,
) -> anyhow::Result<()> {
    // When the transaction of the last result was committed; the job's own times are those of its beginning.
    let sql = format!(
        "SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 FROM weir.jobs
         WHERE source LIKE '{prefix}-%' ORDER BY source"
    );
    let done: Vec<f64> = sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_all(stage.pool())
        .await?;
    let took: Vec<f64> = put_at
        .iter()
        .zip(&done)
        .map(|(put_at, done)| {
            let put_at = put_at.duration_since(UNIX_EPOCH).unwrap_or_default();
            (done - put_at.as_secs_f64()) * 1_000.0
        })
        .collect();
    for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
        report.note(
            format!("put to vector, {prefix}: {name}"),
            "ms",
            percentile(&took, part),
        );
    }
    Ok(())
}

/// Claims beside finished jobs, and at the head of a long queue.
pub(crate) async fn history(
    server: &Server,
    scale: &Scale,
    report: &mut Report,
) -> anyhow::Result<()> {
    let (stage, source) = without_jobs(server).await?;
    let tenth = scale.history / 10;
    let many = scale.namespaces;
    for (what, state, more, namespaces) in [
        ("nothing else".to_owned(), "succeeded", 0, 1),
        (format!("{tenth} finished"), "succeeded", tenth, 1),
        (
            format!("{} finished", scale.history),
            "succeeded",
            scale.history - tenth,
            1,
        ),
        (format!("these and {tenth} queued"), "queued", tenth, 1),
        (
            format!("these and {tenth} queued among {many} namespaces"),
            "queued",
            tenth,
            many,
        ),
    ] {
        jobs(&stage, source, state, more, namespaces).await?;
        sqlx::query("VACUUM ANALYZE weir.jobs")
            .execute(stage.pool())
            .await?;
        jobs(&stage, source, "queued", scale.claims, 1).await?;
        let took = claims(&stage, scale.claims).await?;
        for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
            report.note(
                format!("claim beside {what}: {name}"),
                "ms",
                percentile(&took, part),
            );
        }
    }
    Ok(())
}

/// Transactions that read for minutes, as reports and backups do.
const SNAPSHOTS: usize = 3;

/// Claims while long snapshots keep the versions of rows that are dead: the
/// first ones, and those after a few thousand others.
pub(crate) async fn snapshots(
    server: &Server,
    scale: &Scale,
    report: &mut Report,
) -> anyhow::Result<()> {
    let (stage, source) = without_jobs(server).await?;
    jobs(&stage, source, "queued", scale.pinned + scale.claims, 1).await?;
    sqlx::query("VACUUM ANALYZE weir.jobs")
        .execute(stage.pool())
        .await?;
    let mut open = Vec::new();
    for _ in 0..SNAPSHOTS {
        let mut snapshot = stage
            .pool()
            .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ")
            .await?;
        sqlx::query("SELECT count(*) FROM weir.jobs")
            .execute(&mut *snapshot)
            .await?;
        open.push(snapshot);
    }
    let began = Instant::now();
    let took = claims(&stage, scale.pinned + scale.claims).await?;
    report.note(
        format!("claims beside {SNAPSHOTS} long snapshots: {}", took.len()),
        "s",
        began.elapsed().as_secs_f64(),
    );
    for (when, took) in [
        ("first", &took[..scale.claims]),
        ("last", &took[took.len() - scale.claims..]),
    ] {
        for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
            let what = format!(
                "claim beside {SNAPSHOTS} long snapshots, the {when} {}: {name}",
                took.len()
            );
            report.note(what, "ms", percentile(took, part));
        }
    }
    Ok(())
}

/// A stage with one source, whose number it returns, and no job.
async fn without_jobs(server: &Server) -> anyhow::Result<(Stage, i64)> {
    // Nobody works on what is claimed, and nothing shall hand it back meanwhile.
    let stage = Stage::set(
        server,
        &[("WEIR_ORPHAN_GRACE", "1h"), ("WEIR_LEASE_DURATION", "1h")],
    )
    .await;
    put(stage.coordinator.connect().await, "of-all".to_owned(), 1).await?;
    let source = stage.ask("SELECT id FROM weir.sources").await as i64;
    sqlx::query("DELETE FROM weir.jobs")
        .execute(stage.pool())
        .await?;
    Ok((stage, source))
}

/// Makes jobs in a state, of so many namespaces in turn.
async fn jobs(
    to: &Stage,
    source: i64,
    state: &str,
    how_many: usize,
    namespaces: usize,
) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO weir.jobs (source_id, namespace, source, model, revision, trigger, first_item_id, last_item_id,
                                chunks_total, chunks_done, state, settled, finished_at)
         SELECT $1, CASE WHEN $5 > 1 THEN 'namespace-' || n % $5 ELSE 'default' END, 'of-all', $2, 1, 'write', 'a', 'z', 1, CASE WHEN $3 = 'succeeded' THEN 1 ELSE 0 END, $3,
                $3 = 'succeeded', CASE WHEN $3 = 'succeeded' THEN now() END
         FROM generate_series(1, $4) n",
    )
    .bind(source)
    .bind(MODEL)
    .bind(state)
    .bind(how_many as i32)
    .bind(namespaces as i32)
    .execute(to.pool())
    .await?;
    Ok(())
}

async fn claims(stage: &Stage, how_many: usize) -> anyhow::Result<Vec<f64>> {
    let mut client = WorkerServiceClient::new(stage.coordinator.connect().await);
    let mut took = Vec::new();
    for _ in 0..how_many {
        let began = Instant::now();
        let leases = client
            .claim_job(request("timed".to_owned(), 0))
            .await?
            .into_inner()
            .leases;
        took.push(began.elapsed().as_secs_f64() * 1_000.0);
        anyhow::ensure!(leases.len() == 1, "there is a job to claim");
    }
    Ok(took)
}

fn request(worker_id: String, wait: i64) -> v1::ClaimJobRequest {
    v1::ClaimJobRequest {
        worker_id,
        models: vec![MODEL.to_owned()],
        max_jobs: 1,
        max_chunks: 0,
        busy_with: Vec::new(),
        wait: Some(seconds(wait)),
    }
}

/// A worker that waits for work and gets none.
pub(crate) async fn wait_for_work(channel: Channel, worker_id: String) {
    let mut client = WorkerServiceClient::new(channel);
    while client
        .claim_job(request(worker_id.clone(), 60))
        .await
        .is_ok()
    {}
}
