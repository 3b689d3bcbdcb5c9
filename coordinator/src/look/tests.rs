use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::join_all;
use tokio::{sync::oneshot, time::advance};

use super::*;

const PAUSE: Duration = Duration::from_secs(1);

/// A query that takes some time, and numbers what it sees.
#[derive(Debug, Clone, Default)]
struct Counter(Arc<AtomicUsize>);

impl Counter {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    async fn query(self, took: Duration) -> usize {
        let number = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        sleep(took).await;
        number
    }
}

async fn see(look: &Look<usize>, since: Since, counter: &Counter) -> usize {
    let counter = counter.clone();
    let query = |_| counter.query(Duration::from_millis(100));
    look.see(since, query).await.value
}

#[tokio::test(start_paused = true)]
async fn a_thousand_who_ask_at_the_same_time_are_one_look() {
    let (look, counter) = (Look::every(PAUSE), Counter::default());
    for since in [Since::Lately, Since::Now] {
        let before = counter.count();
        let all = (0..1_000).map(|_| see(&look, since, &counter));
        let seen = join_all(all).await;
        assert_eq!(counter.count(), before + 1, "{since:?}");
        assert!(seen.iter().all(|seen| *seen == before + 1), "{since:?}");
        sleep(PAUSE).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_seen_lately_is_seen_again_until_it_is_too_old() {
    let (look, counter) = (Look::every(PAUSE), Counter::default());
    assert_eq!(see(&look, Since::Lately, &counter).await, 1);
    advance(PAUSE / 2).await;
    assert_eq!(see(&look, Since::Lately, &counter).await, 1);
    advance(PAUSE / 2).await;
    assert_eq!(see(&look, Since::Lately, &counter).await, 2);
}

#[tokio::test(start_paused = true)]
async fn what_has_changed_since_is_seen_by_another_look_and_not_at_once() {
    let (look, counter) = (Look::every(PAUSE), Counter::default());
    let began = Instant::now();
    assert_eq!(see(&look, Since::Now, &counter).await, 1);
    // While one is under way it may have passed by what is asked for now.
    let under_way = see(&look, Since::Now, &counter);
    let asked_then = async {
        sleep(PAUSE + Duration::from_millis(50)).await;
        see(&look, Since::Now, &counter).await
    };
    assert_eq!(tokio::join!(under_way, asked_then), (2, 3));
    assert!(began.elapsed() >= PAUSE * 2);
}

#[tokio::test(start_paused = true)]
async fn a_look_rests_as_long_as_it_says_and_who_asks_at_once_does_not_wait_for_that() {
    let (look, counter) = (
        Look::every(PAUSE).resting(|_, took| took * 20),
        Counter::default(),
    );
    let began = Instant::now();
    assert_eq!(see(&look, Since::Lately, &counter).await, 1);
    advance(PAUSE * 19 / 10).await;
    assert_eq!(see(&look, Since::Lately, &counter).await, 1);
    let follows = see(&look, Since::Now, &counter);
    let asks = async {
        let seen = see(&look, Since::AtOnce, &counter).await;
        (seen, began.elapsed())
    };
    // Whoever rests is content with what another saw meanwhile.
    let (seen, (at_once, after)) = tokio::join!(follows, asks);
    assert_eq!((seen, at_once), (2, 2));
    assert_eq!(after, Duration::from_millis(2_100));
    assert_eq!(see(&look, Since::Now, &counter).await, 3);
    assert_eq!(began.elapsed(), Duration::from_millis(4_200));
}

#[tokio::test(start_paused = true)]
async fn a_look_goes_on_when_whoever_began_it_has_gone() {
    let (look, counter) = (Arc::new(Look::every(PAUSE)), Counter::default());
    for _ in 0..10 {
        // Each gives up before there is an answer.
        let asked = tokio::time::timeout(
            Duration::from_millis(5),
            see(&look, Since::Lately, &counter),
        );
        assert!(asked.await.is_err());
    }
    assert_eq!(see(&look, Since::Lately, &counter).await, 1);
}

#[tokio::test(start_paused = true)]
async fn whoever_gives_up_before_the_turn_comes_costs_no_look() {
    let turns = Turns::of(1);
    let (look, counter) = (
        Look::every(PAUSE).in_turn(turns.clone()),
        Counter::default(),
    );
    let turn = turns.take().await;
    let asked = tokio::time::timeout(PAUSE, see(&look, Since::Now, &counter));
    assert!(asked.await.is_err());
    assert_eq!(counter.count(), 0);
    drop(turn);
    assert_eq!(see(&look, Since::Now, &counter).await, 1);
}

#[tokio::test(start_paused = true)]
async fn all_who_watch_have_their_share_and_no_more() {
    // Four connections are one turn at a time, fifty of them a second.
    let turns = Turns::of(4);
    let counter = Counter::default();
    let looks = (0..1_000).map(|_| Look::every(Duration::ZERO).in_turn(turns.clone()));
    let looks: Vec<Look<usize>> = looks.collect();
    let watched = looks.iter().map(async |look| {
        loop {
            let counter = counter.clone();
            look.see(Since::Now, |_| counter.query(Duration::from_millis(1)))
                .await;
        }
    });
    let seconds = Duration::from_secs(10);
    let _ = tokio::time::timeout(seconds, join_all(watched)).await;
    // Every one in its turn, and none twice before the others.
    assert!((450..=501).contains(&counter.count()), "{counter:?}");
}

#[tokio::test(start_paused = true)]
async fn looks_that_take_long_leave_others_as_much_time() {
    let turns = Turns::of(4);
    let began = Instant::now();
    for _ in 0..10 {
        let _turn = turns.take().await;
        sleep(Duration::from_millis(100)).await;
    }
    assert!(began.elapsed() >= Duration::from_millis(1_900));
}

#[tokio::test(start_paused = true)]
async fn a_look_is_given_what_the_one_before_saw() {
    let look = Look::every(Duration::ZERO);
    for before in [None, Some(0), Some(1)] {
        let (told, seen) = oneshot::channel();
        look.see(Since::Now, |last: Option<i32>| async move {
            let _ = told.send(last);
            last.map_or(0, |last| last + 1)
        })
        .await;
        assert_eq!(seen.await.unwrap(), before);
        // The clock does not stand still between two looks.
        advance(Duration::from_nanos(1)).await;
    }
}
