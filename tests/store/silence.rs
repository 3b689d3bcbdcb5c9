//! A database that says nothing: whoever asks it something is told so, and soon.

use std::{num::NonZeroU32, time::Duration};

use tokio::time;
use weir_coordinator::{
    config::DatabaseConfig,
    store::{Store, StoreError, connect},
};
use weir_tests::{PATIENCE, pgproxy::PgProxy};

use crate::fixture::{Weir, items, key, many, write};

/// How long a statement may take here.
const LIMIT: Duration = Duration::from_millis(500);

/// A store as a coordinator has it, with one connection, through a proxy.
fn store(proxy: &PgProxy, statement_timeout: Duration) -> Store {
    let pools = connect(&DatabaseConfig {
        database_url: Some(proxy.url()),
        database_connections: NonZeroU32::MIN,
        database_timeout: LIMIT,
        statement_timeout,
    });
    let pools = pools.unwrap();
    Store::new(pools.general, LIMIT + statement_timeout).with_leases(pools.leases)
}

/// What a call that must end ends with.
async fn told<T: std::fmt::Debug>(call: impl Future<Output = Result<T, StoreError>>) -> String {
    match time::timeout(PATIENCE, call).await {
        Ok(Err(StoreError::Unavailable(cause))) => cause.to_string(),
        other => panic!("{other:?}"),
    }
}

/// Makes a call until the database is there for it.
async fn again<T>(mut call: impl AsyncFnMut() -> Result<T, StoreError>) {
    let calls = async {
        while let Err(error) = call().await {
            assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        }
    };
    time::timeout(PATIENCE, calls).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_is_lost_without_a_word_is_given_up() {
    let weir = Weir::new().await;
    weir.put("api", &many(2)).await;
    let proxy = PgProxy::start(weir.url());
    let store = store(&proxy, LIMIT);
    let mut holder = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.sources FOR UPDATE")
        .execute(&mut *holder)
        .await
        .unwrap();
    // Waits in the database, in mid-transaction, when the connection goes silent.
    let (content, write) = (many(3), write("api"));
    let put = async {
        tokio::join!(told(store.put_source(&write, &content)), async {
            weir.blocked(1).await;
            proxy.silence();
        })
        .0
    };
    assert!(put.await.contains("did not answer"));
    holder.rollback().await.unwrap();
    // The one connection there may be has been given up as well, so that there is room for another.
    again(async || store.put_source(&write, &content).await).await;
    assert_eq!(weir.counts("api").await.items, 3);
    // One that is silent while nobody uses it is found out too.
    proxy.silence();
    told(store.source(&key("api"))).await;
    again(async || store.source(&key("api")).await).await;
    weir.check().await;
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_ended_by_the_database() {
    let weir = Weir::new().await;
    weir.put("api", &many(2)).await;
    let proxy = PgProxy::start(weir.url());
    let store = store(&proxy, LIMIT);
    let mut holder = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.sources FOR UPDATE")
        .execute(&mut *holder)
        .await
        .unwrap();
    let content = items(&[("a", "text")]);
    let cause = told(store.put_source(&write("api"), &content)).await;
    assert!(cause.contains("statement timeout"), "{cause}");
    weir.blocked(0).await;
    holder.rollback().await.unwrap();
    store.put_source(&write("api"), &content).await.unwrap();
    weir.check().await;
}
