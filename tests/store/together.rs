//! Patches of one source that wait for each other.

use futures::future::{join, join_all};
use weir_coordinator::{
    job::plan::PlannedItem,
    store::{
        StoreError,
        content::{Change, Written},
    },
};

use crate::fixture::{Weir, item, many, write};

/// A source of ten items, and a transaction that has its lock.
async fn locked() -> (Weir, sqlx::Transaction<'static, sqlx::Postgres>) {
    let weir = Weir::new().await;
    weir.put("api", &many(10)).await;
    let mut other = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.sources FOR UPDATE")
        .execute(&mut *other)
        .await
        .unwrap();
    (weir, other)
}

async fn patch(
    weir: &Weir,
    upsert: &[PlannedItem],
    delete: &[&str],
) -> Result<Written, StoreError> {
    let delete: Vec<String> = delete.iter().map(|it| (*it).to_owned()).collect();
    weir.store
        .patch_source(&write("api"), upsert, &delete)
        .await
}

/// Law 14: what comes while others write costs one write together, and each is told
/// of its own.
#[tokio::test]
async fn patches_that_wait_together_are_done_together_and_each_is_told_of_its_own() {
    let (weir, other) = locked().await;
    let mut told = item("i0006", &["text 6"]);
    told.metadata = Some("{}".to_owned());
    let patches: [(&[PlannedItem], &[&str]); 9] = [
        (&[item("i0000", &["other"])], &[]),
        (&[item("i0001", &["other"])], &[]),
        (&[item("new", &["one", "two"])], &[]),
        (&[item("i0003", &["text 3"])], &[]),
        (&[], &["i0004", "nowhere"]),
        (&[told], &[]),
        (&[item("i0007", &["other"])], &["i0008"]),
        // As another has: after that.
        (&[item("i0001", &["again"])], &[]),
        (&[item("i0009", &["other"])], &[]),
    ];
    // In order: the first has the turn, and waits for the lock; the others are left.
    let all = join_all(patches.map(|(upsert, delete)| patch(&weir, upsert, delete)));
    let unlock = async { other.rollback().await.unwrap() };
    let (all, ()) = join(all, unlock).await;
    let all: Vec<Written> = all.into_iter().map(Result::unwrap).collect();
    let revisions: Vec<i64> = all.iter().map(|it| it.source.revision).collect();
    assert_eq!(revisions, [2, 3, 3, 3, 3, 3, 3, 4, 3]);
    let changes: Vec<[i64; 5]> = all
        .iter()
        .map(|it| {
            let Change {
                items_added,
                items_changed,
                items_deleted,
                items_unchanged,
                chunks_pending,
                jobs_superseded: 0,
            } = it.change
            else {
                panic!("{it:?}");
            };
            [
                items_added,
                items_changed,
                items_deleted,
                items_unchanged,
                chunks_pending,
            ]
        })
        .collect();
    assert_eq!(
        changes,
        [
            [0, 1, 0, 0, 1],
            [0, 1, 0, 0, 1],
            [1, 0, 0, 0, 2],
            [0, 0, 0, 1, 0],
            [0, 0, 1, 0, 0],
            [0, 1, 0, 0, 0],
            [0, 1, 1, 0, 1],
            [0, 1, 0, 0, 1],
            [0, 1, 0, 0, 1],
        ]
    );
    for (written, (upsert, _)) in all.iter().zip(patches) {
        assert_eq!(
            written.jobs.is_empty(),
            written.change.chunks_pending == 0,
            "{written:?}"
        );
        for job in &written.jobs {
            let range = job.first_item_id.clone()..=job.last_item_id.clone();
            assert!(upsert.iter().any(|it| range.contains(&it.item_id)));
        }
    }
    weir.check().await;
    let embedded = weir.embed_all().await;
    assert!(embedded.contains(&"again".to_owned()) && !embedded.contains(&"text 4".to_owned()));
    weir.check().await;
}

#[tokio::test]
async fn patches_that_cannot_be_done_together_are_each_told_why() {
    let (weir, mut other) = locked().await;
    let patches = (0..3).map(|n| {
        let weir = &weir;
        async move { patch(weir, &[item(&format!("n{n}"), &["new"])], &[]).await }
    });
    let gone = async {
        sqlx::query("DELETE FROM weir.sources")
            .execute(&mut *other)
            .await
            .unwrap();
        other.commit().await.unwrap();
    };
    let (all, ()) = join(join_all(patches), gone).await;
    for answer in all {
        let error = answer.unwrap_err();
        assert!(matches!(error, StoreError::NotFound(_)), "{error}");
    }
}

#[tokio::test]
async fn a_patch_that_nobody_waits_for_any_more_is_not_done_and_holds_up_nobody() {
    let (weir, other) = locked().await;
    let [a, b, c] = ["a", "b", "c"].map(|id| [item(id, &["new"])]);
    let first = patch(&weir, &a, &[]);
    let mut given_up = Box::pin(patch(&weir, &b, &[]));
    let third = patch(&weir, &c, &[]);
    let rest = async {
        // The second is in line by now, and leaves it.
        assert!(futures::poll!(&mut given_up).is_pending());
        let waiting = async {
            drop(given_up);
            other.rollback().await.unwrap();
        };
        join(third, waiting).await.0
    };
    let (first, third) = join(first, rest).await;
    assert_eq!(first.unwrap().change.items_added, 1);
    assert_eq!(third.unwrap().change.items_added, 1);
    let there = "SELECT count(*) FROM weir.items WHERE item_id IN ('a', 'b', 'c')";
    assert_eq!(weir.number(there).await, 2);
    weir.check().await;
}
