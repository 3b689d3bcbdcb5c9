//! Two Postgres servers, of which the second takes over from the first.

use std::time::Duration;

use sqlx::PgPool;
use tokio::time::{sleep, timeout};

use crate::{
    PATIENCE,
    clients::http,
    cluster::Coordinator,
    embedder::FakeEmbedder,
    postgres::{OwnPostgres, TestDatabase},
    proxy::{FaultProxy, Target},
    standby::Standby,
    world::World,
};

/// A world whose database is reached through a switch, and its standby.
#[derive(Debug)]
pub struct Pair {
    /// The coordinator and the embedder.
    pub world: World,
    /// Follows the primary.
    pub standby: Standby,
    /// What the coordinator reaches its database through.
    pub switch: FaultProxy,
    /// Where the database is.
    pub primary: OwnPostgres,
}

impl Pair {
    /// Starts it with the source "notes" of so many texts, and variables of the
    /// coordinator. What is committed is on both servers.
    pub async fn start(texts: usize, environment: &[(&str, &str)]) -> Self {
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
        let world = World {
            coordinator: Coordinator::spawn(&url, environment).await,
            embedder: FakeEmbedder::start().await,
            database,
        };
        let per_call = Duration::from_millis(20);
        world.embedder.set_delay(per_call, Duration::ZERO);
        let items = (0..texts).map(|n| (format!("item {n:04}"), format!("text {n}")));
        world.put_items("notes", items).await;
        Self {
            world,
            standby,
            switch,
            primary,
        }
    }

    /// Whether the coordinator says that it is ready.
    pub async fn readyz(&self) -> u16 {
        let answer = http()
            .get(format!("{}/readyz", self.world.coordinator.url()))
            .send()
            .await;
        answer.unwrap().status().as_u16()
    }

    /// Awaits that it says so.
    pub async fn becomes(&self, status: u16) {
        let ready = async {
            while self.readyz().await != status {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, ready).await.unwrap();
    }

    /// The database on the standby.
    pub async fn standby_pool(&self) -> PgPool {
        PgPool::connect(&self.standby.url_of(&name_of(&self.world.database)))
            .await
            .unwrap()
    }

    /// Awaits that so many are embedded on the server that took over, each as its
    /// text is.
    pub async fn embeds_all(&self, texts: usize) {
        let pool = self.standby_pool().await;
        let embedded = async {
            while embedded(&pool).await < texts as i64 {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, embedded).await.unwrap();
        pool.close().await;
    }
}

/// How many chunks of a database have the vector of their text.
pub async fn embedded(pool: &PgPool) -> i64 {
    sqlx::query_scalar(
        "SELECT count(*) FROM weir.chunks c JOIN weir.embeddings e
         USING (source_id, item_id, chunk_index) WHERE c.text_hash = e.text_hash",
    )
    .fetch_one(pool)
    .await
    .unwrap()
}

fn name_of(database: &TestDatabase) -> String {
    let (_, rest) = database.url().rsplit_once('/').unwrap();
    let name = rest.split('?').next().unwrap();
    name.to_owned()
}
