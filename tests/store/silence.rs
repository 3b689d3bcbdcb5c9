//! A database that says nothing: whoever asks it something is told so, and soon.

use std::{num::NonZeroU32, time::Duration};

use futures::future::join_all;
use tokio::time;
use weir_coordinator::{
    config::DatabaseConfig,
    store::{Store, StoreError, connect},
};
use weir_tests::{PATIENCE, pgproxy::PgProxy};

use crate::fixture::{LEASE, Weir, items, key, lease_of, many, write};

/// How long a statement may take here.
const LIMIT: Duration = Duration::from_millis(500);

/// A store as a coordinator has it, with one connection, through a proxy.
fn store(proxy: &PgProxy, statement_timeout: Duration) -> Store {
    one_connection(
        &proxy.url(),
        LIMIT,
        statement_timeout,
        LIMIT + statement_timeout,
    )
}

/// The same, of a database. It is waited `patience` for a connection, and `limit`
/// for what is locked.
fn one_connection(
    url: &str,
    patience: Duration,
    statement_timeout: Duration,
    limit: Duration,
) -> Store {
    let pools = connect(&DatabaseConfig {
        database_url: Some(url.to_owned().into()),
        database_connections: NonZeroU32::MIN,
        database_timeout: patience,
        statement_timeout,
    });
    let pools = pools.unwrap();
    Store::new(pools.general, limit).with_leases(pools.leases)
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
    weir.meddle(
        "CREATE FUNCTION weir.dawdle() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM pg_sleep(600); RETURN new; END';
         CREATE TRIGGER dawdle BEFORE INSERT ON weir.items FOR EACH ROW EXECUTE FUNCTION weir.dawdle()",
    )
    .await;
    let content = items(&[("a", "text")]);
    let cause = told(store.put_source(&write("api"), &content)).await;
    assert!(cause.contains("statement timeout"), "{cause}");
    weir.meddle("DROP TRIGGER dawdle ON weir.items").await;
    store.put_source(&write("api"), &content).await.unwrap();
    weir.check().await;
}

/// Law 13: whoever waits for a source holds no connection, so that a single one
/// is enough for all others.
#[tokio::test]
async fn a_locked_source_keeps_nobody_from_the_database() {
    let weir = Weir::new().await;
    weir.put("locked", &many(2)).await;
    let job = weir.claim().await;
    let limit = Duration::from_secs(2);
    let store = one_connection(weir.url(), PATIENCE, PATIENCE, limit);
    let mut holder = weir.pool().begin().await.unwrap();
    for lock in [
        "SELECT FROM weir.sources WHERE name = 'locked' FOR UPDATE",
        "SELECT FROM weir.jobs FOR UPDATE",
    ] {
        sqlx::query(lock).execute(&mut *holder).await.unwrap();
    }
    let (write_locked, content) = (write("locked"), many(3));
    let puts = (0..20).map(|_| store.put_source(&write_locked, &content));
    let renewals = (0..20).map(|_| store.renew(lease_of(&job), LEASE));
    let others = async {
        for round in 0..20 {
            let written = store.put_source(&write("free"), &many(1 + round % 2)).await;
            assert!(written.is_ok(), "round {round}: {written:?}");
        }
    };
    let (puts, renewals, ()) = tokio::join!(join_all(puts), join_all(renewals), others);
    for put in puts {
        let Err(StoreError::Locked(why)) = put else {
            panic!("{put:?}");
        };
        assert!(
            why.contains("the source \"locked\" in namespace \"shop\""),
            "{why}"
        );
    }
    for renewal in renewals {
        let Err(StoreError::Locked(why)) = renewal else {
            panic!("{renewal:?}");
        };
        assert!(why.contains(&format!("job {}", job.id)), "{why}");
    }
    holder.rollback().await.unwrap();
    assert!(store.put_source(&write_locked, &content).await.is_ok());
    assert!(store.renew(lease_of(&job), LEASE).await.is_ok());
    weir.check().await;
}

/// Maintenance goes on with the next source.
#[tokio::test]
async fn maintenance_passes_by_a_locked_source() {
    let weir = Weir::new().await;
    let mut ids = Vec::new();
    for name in ["locked", "free"] {
        ids.push(weir.put(name, &many(2)).await.source.id);
        weir.embed_all().await;
    }
    weir.meddle("DELETE FROM weir.embeddings WHERE item_id = 'i0001'")
        .await;
    let mut checked = Vec::new();
    for id in &ids {
        checked.push(weir.begin_check(*id).await);
    }
    let mut holder = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.sources WHERE name = 'locked' FOR UPDATE")
        .execute(&mut *holder)
        .await
        .unwrap();
    let repairs = checked
        .iter()
        .map(|checked| weir.store.repair(checked, 1_000, None));
    let repaired: Vec<bool> = join_all(repairs)
        .await
        .into_iter()
        .map(|repaired| repaired.unwrap().is_some())
        .collect();
    assert_eq!(repaired, [false, true]);
    holder.rollback().await.unwrap();
    let late = weir.store.repair(&checked[0], 1_000, None).await;
    assert_eq!(late.unwrap().unwrap().queued, 1);
    weir.check().await;
}
