//! Writes that are sent again after their answer was lost: nothing that others
//! wrote meanwhile is undone.

use std::{fs, process::Output};

use tonic::Code;
use weir_proto::v1;
use weir_tests::{
    clients::{Weir, assert_invalid, item, put_texts},
    cluster::weir,
    proxy::{Cut, FaultProxy, Silence, Target},
};

use crate::{clients::until, world::World};

#[tokio::test]
async fn a_write_for_another_revision_is_aborted_and_names_both() {
    let weir = Weir::start().await;
    let mut sources = weir.sources();
    let put = |texts: &[&str], revision| v1::PutSourceRequest {
        expected_revision: revision,
        ..put_texts("s", texts)
    };
    let first = sources.put_source(put(&["one"], Some(0))).await.unwrap();
    assert_eq!(first.into_inner().source.unwrap().revision, 1);
    let second = sources.put_source(put(&["two"], Some(1))).await.unwrap();
    assert_eq!(second.into_inner().source.unwrap().revision, 2);
    // A late duplicate of the first, and a resend of the second.
    let late = sources.put_source(put(&["one"], Some(0))).await;
    let late = late.unwrap_err();
    assert_eq!(late.code(), Code::Aborted);
    assert!(late.message().contains("at revision 2"), "{late:?}");
    let again = sources.put_source(put(&["two"], Some(1))).await.unwrap();
    assert_eq!(again.into_inner().source.unwrap().revision, 2);
    let patch = v1::PatchSourceRequest {
        name: "s".to_owned(),
        upsert: vec![item("x", "three")],
        expected_revision: Some(1),
        ..v1::PatchSourceRequest::default()
    };
    let stale = sources.patch_source(patch.clone()).await.unwrap_err();
    assert_eq!(stale.code(), Code::Aborted);
    assert!(stale.message().contains("revision 1") && stale.message().contains("at revision 2"));
    let delete = |revision| v1::DeleteSourceRequest {
        name: "s".to_owned(),
        expected_revision: Some(revision),
        ..v1::DeleteSourceRequest::default()
    };
    assert_eq!(
        sources.delete_source(delete(1)).await.unwrap_err().code(),
        Code::Aborted
    );
    assert_eq!(weir.source("s").await.unwrap().revision, 2);

    // What cannot be a revision is refused at the door.
    let refused = sources.put_source(put(&["one"], Some(-1))).await;
    assert_invalid(&refused.unwrap_err(), "expected_revision", "or 0 where");
    let refused = sources.delete_source(delete(0)).await.unwrap_err();
    assert_invalid(&refused, "expected_revision", "at least 1, not 0");
    let refused = v1::PatchSourceRequest {
        expected_revision: Some(0),
        ..patch
    };
    let refused = sources.patch_source(refused).await.unwrap_err();
    assert_invalid(&refused, "expected_revision", "at least 1, not 0");
    sources.delete_source(delete(2)).await.unwrap();
}

/// A world, a proxy before it, and a source `s` of one text at revision 1.
async fn behind_a_proxy() -> (World, FaultProxy) {
    let world = World::start(&[]).await;
    let proxy = FaultProxy::start([Target::Tcp(world.coordinator.address())]).await;
    world
        .put_items("s", [("s".to_owned(), "old".to_owned())])
        .await;
    (world, proxy)
}

/// Holds up writes of `s`, until the connection has lost what is answered.
async fn lose_the_answer(world: &World, proxy: &FaultProxy, done: &'static str) {
    let mut lock = world.database.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.sources WHERE name = 's' FOR UPDATE")
        .execute(&mut *lock)
        .await
        .unwrap();
    let number = async |sql: &'static str| -> i64 {
        let number = sqlx::query_scalar(sql).fetch_one(world.database.pool());
        number.await.unwrap()
    };
    until(async || {
        number(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        .await
            == 1
    })
    .await;
    proxy.silence(Silence::ToClient);
    lock.rollback().await.unwrap();
    until(async || number(done).await == 1).await;
}

/// Ends the connection for good before the network is well again.
async fn cut(proxy: &FaultProxy) {
    proxy.refuse();
    proxy.cut(Cut::Reset);
    until(async || proxy.connections() == 0).await;
    proxy.resume();
}

const AT_TWO: &str = "SELECT count(*) FROM weir.sources WHERE name = 's' AND revision = 2";
const GONE: &str = "SELECT (count(*) = 0)::int::bigint FROM weir.sources WHERE name = 's'";

/// Puts a file with other words than those that are there.
async fn put_new(url: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("s.txt");
    fs::write(&file, "new").unwrap();
    weir(url, &["put", file.to_str().unwrap(), "--name", "s"]).await
}

#[tokio::test]
async fn the_command_line_sends_again_what_was_not_answered() {
    let (world, proxy) = behind_a_proxy().await;
    let url = proxy.url();
    let put = put_new(&url);
    let lost = async {
        lose_the_answer(&world, &proxy, AT_TWO).await;
        cut(&proxy).await;
    };
    let (put, ()) = tokio::join!(put, lost);
    assert!(put.status.success(), "{put:?}");
    let said = String::from_utf8_lossy(&put.stdout);
    assert!(said.contains("is at revision 2"), "{said}");
    assert!(said.contains("none changed"), "{said}");
    assert_eq!(world.source("s").await.source.unwrap().revision, 2);

    let args = ["rm", "s"];
    let rm = weir(&url, &args);
    let lost = async {
        lose_the_answer(&world, &proxy, GONE).await;
        cut(&proxy).await;
    };
    let (rm, ()) = tokio::join!(rm, lost);
    assert!(rm.status.success(), "{rm:?}");
    let rm = weir(&url, &["rm", "s"]).await;
    assert_eq!(rm.status.code(), Some(1), "{rm:?}");
}

#[tokio::test]
async fn the_command_line_undoes_nothing_that_others_wrote_meanwhile() {
    let (world, proxy) = behind_a_proxy().await;
    let url = proxy.url();
    let put = put_new(&url);
    let lost = async {
        lose_the_answer(&world, &proxy, AT_TWO).await;
        let newer = [("s".to_owned(), "newer".to_owned())];
        world.put_items("s", newer).await;
        cut(&proxy).await;
    };
    let (put, ()) = tokio::join!(put, lost);
    assert_eq!(put.status.code(), Some(1), "{put:?}");
    let said = String::from_utf8_lossy(&put.stderr);
    assert!(said.contains("at revision 3"), "{said}");
    let chunks = world.chunks("s").await;
    assert_eq!(chunks[0].text, "newer");
}
