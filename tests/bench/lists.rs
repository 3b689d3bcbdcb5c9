//! What a long history costs those who read lists: the median time of an answer
//! over a thousand finished jobs and over a million, for each filter.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "this is a program that says what it measured, or why it could not"
)]

use std::time::{Duration, Instant};

use anyhow::ensure;
use sqlx::{AssertSqlSafe, Executor as _};
use weir_proto::v1::{
    self, JobState, JobTrigger, ListJobsRequest as List, source_service_client::SourceServiceClient,
};
use weir_tests::clients::Weir;

/// Finished jobs in each history.
const HISTORIES: [i64; 2] = [1_000, 1_000_000];

/// Answers that a median is taken of, after one that is not counted.
const ANSWERS: usize = 51;

/// What a list is asked for, by name.
type Question = (&'static str, List);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut medians = Vec::new();
    for jobs in HISTORIES {
        let weir = Weir::with(&[
            ("WEIR_MODELS", "fake,rare"),
            ("WEIR_JOB_RETENTION", "300days"),
        ])
        .await;
        write_history(&weir, jobs).await?;
        medians.push(measure_all(&weir).await?);
    }
    println!(
        "{:<34} {:>14} {:>14}",
        "median ms over so many jobs", HISTORIES[0], HISTORIES[1]
    );
    for ((name, few), (_, many)) in medians[0].iter().zip(&medians[1]) {
        println!("{name:<34} {:>14.2} {:>14.2}", millis(*few), millis(*many));
    }
    Ok(())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// Writes finished jobs of 500 sources as a year of use would leave them: of a
/// thousand, one failed, one was cancelled, one came from the reconciler and
/// one is of a rare model. The namespace "old" has ten, the oldest of all.
async fn write_history(weir: &Weir, jobs: i64) -> anyhow::Result<()> {
    let sql = format!(
        "INSERT INTO weir.jobs
             (source_id, epoch, revision, run_at, created_at, started_at, finished_at, chunks_total, chunks_done,
              settled, state, trigger, namespace, source, model, first_item_id, last_item_id, last_error)
         SELECT n % 500, 1, 1, at, at, at, at, 1, (state = 'succeeded')::int, true, state,
                CASE WHEN n % 1000 = 3 THEN 'reconcile' ELSE 'write' END,
                CASE WHEN n <= 10 THEN 'old' ELSE 'default' END, 'source-' || lpad((n % 500)::text, 4, '0'),
                CASE WHEN n % 1000 = 4 THEN 'rare' ELSE 'fake' END, 'a', 'z',
                CASE WHEN state <> 'succeeded' THEN 'no reason at all' END
         FROM generate_series(1, {jobs}) n,
              LATERAL (SELECT now() - ({jobs} - n) * interval '20 seconds' AS at,
                              CASE n % 1000 WHEN 1 THEN 'failed' WHEN 2 THEN 'cancelled' ELSE 'succeeded' END
                                  AS state) made"
    );
    let pool = weir.database.pool();
    // What waits is older than all that is finished.
    weir.put("waits", &["one"]).await;
    pool.execute(AssertSqlSafe(sql)).await?;
    pool.execute("VACUUM ANALYZE weir.jobs").await?;
    Ok(())
}

fn questions() -> Vec<Question> {
    let all = List::default;
    let in_default = || List {
        namespace: "default".to_owned(),
        ..all()
    };
    let states = |states: &[JobState]| List {
        states: states.iter().map(|&state| state.into()).collect(),
        ..all()
    };
    let triggers = |trigger: JobTrigger| List {
        triggers: vec![trigger.into()],
        ..all()
    };
    let of_model = |model: &str| List {
        model: model.to_owned(),
        ..all()
    };
    vec![
        ("all", all()),
        ("namespace", in_default()),
        (
            "namespace, ten old jobs",
            List {
                namespace: "old".to_owned(),
                ..all()
            },
        ),
        (
            "source",
            List {
                source: "source-0007".to_owned(),
                ..in_default()
            },
        ),
        (
            "source prefix, one in fifty",
            List {
                source_prefix: "source-000".to_owned(),
                ..in_default()
            },
        ),
        ("state succeeded", states(&[JobState::Succeeded])),
        (
            "state failed, one in a thousand",
            states(&[JobState::Failed]),
        ),
        (
            "states failed and cancelled",
            states(&[JobState::Failed, JobState::Cancelled]),
        ),
        ("state running, none", states(&[JobState::Running])),
        (
            "state queued, the oldest of all",
            states(&[JobState::Queued]),
        ),
        ("trigger write", triggers(JobTrigger::Write)),
        (
            "trigger reconcile, one in 1,000",
            triggers(JobTrigger::Reconcile),
        ),
        ("model", of_model("fake")),
        ("model, one in a thousand", of_model("rare")),
        (
            "failure, no jobs",
            List {
                failure_id: 1,
                ..all()
            },
        ),
        (
            "all, two fields",
            List {
                read_mask: Some(prost_types::FieldMask {
                    paths: vec!["job_id".to_owned(), "state".to_owned()],
                }),
                ..all()
            },
        ),
    ]
}

/// The median of each question, of the pages after and before, and of the other
/// lists.
async fn measure_all(weir: &Weir) -> anyhow::Result<Vec<(&'static str, Duration)>> {
    let mut medians = Vec::new();
    for (name, list) in questions() {
        medians.push((
            name,
            median(async || page(weir, list.clone()).await.map(drop)).await?,
        ));
    }
    let first = page(weir, List::default()).await?;
    let next = List {
        page_token: first.next_page_token,
        ..List::default()
    };
    let second = page(weir, next.clone()).await?;
    ensure!(!second.jobs.is_empty() && !second.previous_page_token.is_empty());
    let back = List {
        page_token: second.previous_page_token,
        ..List::default()
    };
    medians.push((
        "the next page",
        median(async || page(weir, next.clone()).await.map(drop)).await?,
    ));
    medians.push((
        "the page before",
        median(async || page(weir, back.clone()).await.map(drop)).await?,
    ));
    let sources = async || {
        let mut client = SourceServiceClient::new(weir.channel.clone());
        client
            .list_sources(v1::ListSourcesRequest::default())
            .await?;
        anyhow::Ok(())
    };
    medians.push(("ListSources", median(sources).await?));
    let failures = async || {
        weir.jobs()
            .list_failures(v1::ListFailuresRequest::default())
            .await?;
        anyhow::Ok(())
    };
    medians.push(("ListFailures", median(failures).await?));
    let status = async || {
        weir.jobs()
            .get_status(v1::GetStatusRequest::default())
            .await?;
        anyhow::Ok(())
    };
    medians.push(("GetStatus", median(status).await?));
    Ok(medians)
}

async fn page(weir: &Weir, list: List) -> anyhow::Result<v1::ListJobsResponse> {
    Ok(weir.jobs().list_jobs(list).await?.into_inner())
}

async fn median(mut ask: impl AsyncFnMut() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    ask().await?;
    let mut times = Vec::with_capacity(ANSWERS);
    for _ in 0..ANSWERS {
        let began = Instant::now();
        ask().await?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok(times[ANSWERS / 2])
}
