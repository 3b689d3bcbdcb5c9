//! Another Postgres takes over, and nothing else is restarted.

use std::time::Duration;

use sqlx::PgPool;
use tokio::time::{sleep, timeout};
use tonic::Code;
use weir_proto::v1::{ClaimJobRequest, worker_service_client::WorkerServiceClient};
use weir_tests::{
    PATIENCE,
    clients::http,
    cluster::{Coordinator, MODEL},
    embedder::FakeEmbedder,
    postgres::{OwnPostgres, TestDatabase},
    proxy::{FaultProxy, Target},
    standby::Standby,
    world::World,
};

/// Texts of the source.
const TEXTS: usize = 400;

/// A world whose database is reached through a switch, and its standby.
struct Pair {
    world: World,
    standby: Standby,
    switch: FaultProxy,
    primary: OwnPostgres,
}

impl Pair {
    /// Starts it with a source half embedded. What is committed is on both
    /// servers.
    async fn start() -> Self {
        let primary = OwnPostgres::start(&[]).await;
        let database = TestDatabase::create_on(&primary).await;
        let standby = Standby::follow(&primary).await;
        for setting in [
            "ALTER SYSTEM SET synchronous_standby_names = '*'",
            "SELECT pg_reload_conf()",
        ] {
            sqlx::query(setting).execute(database.pool()).await.unwrap();
        }
        let switch = FaultProxy::start([Target::Unix(primary.socket())]).await;
        let url = format!(
            "postgres://postgres@{}/{}?sslmode=disable",
            switch.address(),
            name_of(&database)
        );
        let environment = [
            ("WEIR_DATABASE_TIMEOUT", "500ms"),
            ("WEIR_POLL_INTERVAL", "1s"),
        ];
        let world = World {
            coordinator: Coordinator::spawn(&url, &environment).await,
            embedder: FakeEmbedder::start().await,
            database,
        };
        let per_call = Duration::from_millis(20);
        world.embedder.set_delay(per_call, Duration::ZERO);
        let items = (0..TEXTS).map(|n| (format!("item {n:04}"), format!("text {n}")));
        world.put_items("notes", items).await;
        Self {
            world,
            standby,
            switch,
            primary,
        }
    }

    /// Whether the coordinator says that it is ready.
    async fn readyz(&self) -> u16 {
        let answer = http()
            .get(format!("{}/readyz", self.world.coordinator.url()))
            .send()
            .await;
        answer.unwrap().status().as_u16()
    }

    async fn becomes(&self, status: u16) {
        let ready = async {
            while self.readyz().await != status {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, ready).await.unwrap();
    }

    /// Awaits that all is embedded on the server that took over, and that
    /// nothing was embedded twice but what was under way.
    async fn embeds_all(&self) {
        let pool = PgPool::connect(&self.standby.url_of(&name_of(&self.world.database)))
            .await
            .unwrap();
        let embedded = async {
            loop {
                let count: i64 = sqlx::query_scalar(
                    "SELECT count(*) FROM weir.chunks c JOIN weir.embeddings e
                     USING (source_id, item_id, chunk_index) WHERE c.text_hash = e.text_hash",
                )
                .fetch_one(&pool)
                .await
                .unwrap();
                if count == TEXTS as i64 {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, embedded).await.unwrap();
        pool.close().await;
    }
}

fn name_of(database: &TestDatabase) -> String {
    let (_, rest) = database.url().rsplit_once('/').unwrap();
    let name = rest.split('?').next().unwrap();
    name.to_owned()
}

#[tokio::test]
async fn work_goes_on_with_the_standby_that_is_promoted() {
    let mut pair = Pair::start().await;
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
    pair.embeds_all().await;
}

#[tokio::test]
async fn connections_to_a_server_that_takes_no_writes_any_more_are_left() {
    let pair = Pair::start().await;
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
    pair.embeds_all().await;
}
