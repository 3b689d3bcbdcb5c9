//! Another Postgres takes over, and nothing else is restarted.

use tonic::Code;
use weir_proto::v1::{ClaimJobRequest, worker_service_client::WorkerServiceClient};
use weir_tests::{cluster::MODEL, pair::Pair, proxy::Target};

/// Texts of the source.
const TEXTS: usize = 400;

/// What the coordinator is told, so that it notices soon.
const SOON: [(&str, &str); 2] = [
    ("WEIR_DATABASE_TIMEOUT", "500ms"),
    ("WEIR_POLL_INTERVAL", "1s"),
];

#[tokio::test]
async fn work_goes_on_with_the_standby_that_is_promoted() {
    let mut pair = Pair::start(TEXTS, &SOON).await;
    let _worker = pair.world.worker("8");
    pair.world.embedded("notes", 80).await;
    pair.primary.kill().await;
    // As an address does that is moved before the server behind it is ready.
    let standby = Target::Unix(pair.standby.socket());
    pair.switch.set_targets([standby]);
    pair.becomes(503).await;
    let mut worker = WorkerServiceClient::new(pair.world.coordinator.connect().await);
    let claim = ClaimJobRequest {
        worker_id: "another".to_owned(),
        models: vec![MODEL.to_owned()],
        ..ClaimJobRequest::default()
    };
    let refused = worker.claim_job(claim).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    pair.standby.promote().await;
    pair.becomes(200).await;
    pair.embeds_all(TEXTS).await;
}

#[tokio::test]
async fn connections_to_a_server_that_takes_no_writes_any_more_are_left() {
    let pair = Pair::start(TEXTS, &SOON).await;
    let _worker = pair.world.worker("8");
    pair.world.embedded("notes", 80).await;
    for setting in [
        "ALTER SYSTEM SET default_transaction_read_only = on",
        "SELECT pg_reload_conf()",
    ] {
        let pool = pair.world.database.pool();
        sqlx::query(setting).execute(pool).await.unwrap();
    }
    pair.becomes(503).await;
    pair.standby.promote().await;
    // What is connected stays so: the server of before goes on.
    let standby = Target::Unix(pair.standby.socket());
    pair.switch.set_targets([standby]);
    pair.becomes(200).await;
    pair.embeds_all(TEXTS).await;
}
