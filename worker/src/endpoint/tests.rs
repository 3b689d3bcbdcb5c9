mod silence;
mod verdicts;

use std::{
    ops::Deref,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use async_trait::async_trait;
use futures::future::join_all;
use proptest::{collection::vec, prelude::*};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use weir_embedder::{EmbedError, Embedding, Probe, judge::CallSize};

use super::*;
use crate::{
    part::{Chunk, ChunkKey, LeaseId},
    testing,
};

type Outcome = super::Answer;
type Answer = Result<Vec<Embedding>, EmbedError>;
type Rule = Box<dyn Fn(&[&str]) -> Result<(), EmbedError> + Send + Sync>;

/// An embedder that takes a second for each call and refuses by a rule.
struct Server {
    rule: Rule,
    /// What it makes of the text of a probe; that it passes is the default.
    probe_rule: Rule,
    probes: AtomicUsize,
    calls: Mutex<Vec<Vec<String>>>,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
}

impl Server {
    fn new(rule: impl Fn(&[&str]) -> Result<(), EmbedError> + Send + Sync + 'static) -> Arc<Self> {
        Self::with(rule, |_| Ok(()))
    }

    fn with(
        rule: impl Fn(&[&str]) -> Result<(), EmbedError> + Send + Sync + 'static,
        probe_rule: impl Fn(&[&str]) -> Result<(), EmbedError> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            rule: Box::new(rule),
            probe_rule: Box::new(probe_rule),
            probes: AtomicUsize::new(0),
            calls: Mutex::default(),
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
        })
    }

    /// The calls so far.
    fn calls(&self) -> Vec<Vec<String>> {
        self.calls.lock().unwrap().clone()
    }
}

#[async_trait]
impl Embedder for Server {
    async fn embed(&self, texts: &[&str]) -> Answer {
        let sent = texts.iter().map(|&text| text.to_owned()).collect();
        self.calls.lock().unwrap().push(sent);
        let under_way = self.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_under_way.fetch_max(under_way, Ordering::Relaxed);
        sleep(Duration::from_secs(1)).await;
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        (self.rule)(texts)?;
        Ok(texts.iter().map(|text| Ok(testing::vector(text))).collect())
    }

    async fn probe(&self, bytes: usize) -> Result<Probe, EmbedError> {
        self.probes.fetch_add(1, Ordering::Relaxed);
        (self.probe_rule)(&[&"p".repeat(bytes)])?;
        Ok(Probe {
            dimension: 2,
            limits: weir_embedder::Limits::default(),
        })
    }
}

fn has(texts: &[&str], bad: &str) -> bool {
    texts.iter().any(|text| text.starts_with(bad))
}

/// Refuses a call with a text that begins with "bad".
fn picky(texts: &[&str]) -> Result<(), EmbedError> {
    let reason = || format!("refused {}", texts.join(" "));
    if has(texts, "bad") {
        return Err(EmbedError::Input {
            reason: reason(),
            culprit: None,
        });
    }
    Ok(())
}

const fn judged(texts: usize, tokens: usize) -> judge::Settings {
    judge::Settings {
        ceiling: CallSize { texts, tokens },
        shortest: 4,
    }
}

const SETTINGS: Settings = Settings {
    judge: judged(32, 10_000),
    calls: 4,
    timeout: Duration::from_mins(1),
    requests_per_minute: None,
    tokens_per_minute: None,
};

/// An endpoint that runs, whose answers go to whoever asked.
struct Asked {
    endpoint: Arc<Endpoint>,
    waiting: Waiting,
    _answering: AbortOnDropHandle<()>,
}

type Waiting = Arc<Mutex<Vec<(Arc<Part>, oneshot::Sender<Outcome>)>>>;

/// Withdraws a part that nobody waits for any more.
struct Withdraw<'a>(&'a Endpoint, [Arc<Part>; 1]);

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.0.withdraw(&self.1);
    }
}

impl Asked {
    /// Embeds a part of a namespace, and withdraws it when it is dropped.
    async fn embed(&self, mut part: Part, namespace: &str) -> Outcome {
        namespace.clone_into(&mut part.namespace);
        let part = Arc::new(part);
        let (reply, answer) = oneshot::channel();
        let waits = (Arc::clone(&part), reply);
        self.waiting.lock().unwrap().push(waits);
        self.endpoint.ask(vec![(Arc::clone(&part), None)]);
        let _withdraw = Withdraw(&self.endpoint, [part]);
        answer.await.unwrap()
    }
}

impl Deref for Asked {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.endpoint
    }
}

/// An endpoint that runs.
fn start<E: Embedder>(
    embedder: &Arc<E>,
    settings: Settings,
) -> (Arc<Asked>, AbortOnDropHandle<Infallible>) {
    let embedder: Arc<dyn Embedder> = Arc::clone(embedder) as _;
    let news = Arc::new(Notify::new());
    let endpoint = Endpoint::new(embedder, settings, Metrics::unseen(), Arc::clone(&news));
    let endpoint = Arc::new(endpoint);
    let running = Arc::clone(&endpoint);
    let running = tokio::spawn(async move { running.run().await });
    let waiting = Waiting::default();
    let (answering, asked) = (Arc::clone(&endpoint), Arc::clone(&waiting));
    let answering = tokio::spawn(async move {
        loop {
            news.notified().await;
            for answer in answering.take_answers() {
                let mut waiting = asked.lock().unwrap();
                let is_it = |(part, _): &(Arc<Part>, _)| Arc::ptr_eq(part, &answer.part);
                let place = waiting.iter().position(is_it);
                let (_, reply) = waiting.swap_remove(place.expect("it was asked for"));
                reply.send(answer).ok();
            }
        }
    });
    let asked = Asked {
        endpoint,
        waiting,
        _answering: AbortOnDropHandle::new(answering),
    };
    (Arc::new(asked), AbortOnDropHandle::new(running))
}

fn key(text: &str) -> ChunkKey {
    ChunkKey {
        item_id: text.to_owned(),
        chunk_index: 0,
        text_hash: Vec::new(),
    }
}

fn batch(texts: &[&str]) -> Part {
    let chunks = texts.iter().map(|&text| Chunk {
        key: key(text),
        text: text.to_owned(),
    });
    Part {
        seq: 5,
        lease: LeaseId {
            job_id: 1,
            epoch: 1,
        },
        namespace: String::new(),
        source: "n/source".to_owned(),
        trace: None,
        chunks: chunks.collect(),
    }
}

/// The item ids with a vector, which is checked to be the right one.
fn embedded(outcome: &Outcome) -> Vec<&str> {
    let embedded = outcome.result.embedded.iter();
    let embedded = embedded.inspect(|embedded| {
        let whole = testing::packed(&embedded.key.item_id);
        assert_eq!((&*embedded.vector, embedded.chars), (&*whole, None));
    });
    let ids = embedded.map(|embedded| embedded.key.item_id.as_str());
    ids.collect()
}

fn rejected(outcome: &Outcome) -> Vec<&str> {
    let rejected = outcome.result.rejected.iter();
    rejected.map(|(key, _)| key.item_id.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn small_batches_travel_together_and_come_apart_again() {
    let server = Server::new(picky);
    let (endpoint, _running) = start(&server, SETTINGS);
    let texts: Vec<String> = (0..20).map(|n| format!("text {n}")).collect();
    let outcomes = join_all(texts.iter().map(|text| endpoint.embed(batch(&[text]), "n"))).await;
    for (text, outcome) in texts.iter().zip(&outcomes) {
        assert_eq!(embedded(outcome), [text]);
        assert_eq!(outcome.failure, None);
    }
    assert_eq!(server.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_poison_text_hurts_no_other_batch() {
    let server = Server::new(picky);
    let (endpoint, _running) = start(&server, SETTINGS);
    let texts = ["a", "b", "bad", "c", "d", "e", "f", "g"];
    let outcomes = join_all(texts.map(|text| endpoint.embed(batch(&[text]), "n"))).await;
    for (text, outcome) in texts.iter().zip(&outcomes) {
        assert_eq!(outcome.failure, None, "{text}");
        let healthy = usize::from(*text != "bad");
        assert_eq!(embedded(outcome).len(), healthy, "{text}");
        assert_eq!(rejected(outcome).len(), 1 - healthy, "{text}");
    }
    assert!(server.calls().len() <= 24, "{:?}", server.calls());
}

#[tokio::test(start_paused = true)]
async fn calls_keep_to_the_bounds_of_texts_and_of_tokens() {
    let server = Server::new(picky);
    let settings = Settings {
        judge: judged(3, 20),
        ..SETTINGS
    };
    let (endpoint, _running) = start(&server, settings);
    let long = "x".repeat(200);
    let texts = ["a", "b", "c", "d", &long, "e"];
    let outcome = endpoint.embed(batch(&texts), "n").await;
    assert_eq!(embedded(&outcome), texts);
    let sizes: Vec<usize> = server.calls().iter().map(Vec::len).collect();
    assert_eq!(sizes, [3, 1, 1, 1], "a text larger than a call is a call");
}

#[tokio::test(start_paused = true)]
async fn a_text_that_the_answer_breaks_of_is_found_and_rejected() {
    let server = Server::new(|texts| {
        let reason = "a broken answer".to_owned();
        if has(texts, "fail") {
            Err(EmbedError::Transient { reason })
        } else {
            Ok(())
        }
    });
    let (endpoint, _running) = start(&server, SETTINGS);
    let [good, bad] = ["good", "fail"].map(|text| endpoint.embed(batch(&[text]), "n"));
    let (good, bad) = tokio::join!(good, bad);
    assert_eq!((embedded(&good), &good.failure), (vec!["good"], &None));
    assert_eq!((rejected(&bad), &bad.failure), (vec!["fail"], &None));
    assert_eq!(bad.result.rejected[0].1, "a broken answer");
}

#[tokio::test(start_paused = true)]
async fn an_embedder_that_breaks_a_call_and_fails_a_probe_is_down() {
    let gone = Arc::new(AtomicBool::new(false));
    let break_down = Arc::clone(&gone);
    let server = Server::with(
        move |_| {
            break_down.store(true, Ordering::Relaxed);
            let reason = "it broke the connection".to_owned();
            Err(EmbedError::Broken { reason })
        },
        move |_| {
            let reason = "it broke the probe".to_owned();
            if gone.load(Ordering::Relaxed) {
                return Err(EmbedError::Broken { reason });
            }
            Ok(())
        },
    );
    let (endpoint, _running) = start(&server, SETTINGS);
    // The first call is of both; neither is to blame more than the other.
    let both = ["a", "b"].map(|text| endpoint.embed(batch(&[text]), "n"));
    for outcome in join_all(both).await {
        assert_eq!(outcome.failure.as_deref(), Some("it broke the probe"));
        assert!(outcome.result.outcomes() == 0);
    }
    assert_eq!(endpoint.health.down().await, "it broke the probe");
}

#[tokio::test(start_paused = true)]
async fn what_is_too_long_is_halved_until_it_fits_or_is_too_short_to_mean_anything() {
    let server = Server::new(|texts| {
        let long = texts.iter().any(|text| text.len() > 10);
        let reason = "the context length is exceeded".to_owned();
        if long || has(texts, "€") {
            return Err(EmbedError::TooLong {
                reason,
                culprit: None,
            });
        }
        Ok(())
    });
    let (endpoint, _running) = start(&server, SETTINGS);
    let long = "0123456789abcdefghijklmnopqrstuv";
    let outcome = endpoint.embed(batch(&["short", long, "€€€"]), "n").await;
    assert_eq!(outcome.failure, None);
    let [short, shortened] = outcome.result.embedded.as_slice() else {
        panic!("{outcome:?}");
    };
    assert_eq!((&*short.key.item_id, short.chars), ("short", None));
    let kept = shortened.chars.unwrap() as usize;
    assert!((4..=10).contains(&kept), "{kept}");
    assert_eq!(&*shortened.vector, testing::packed(&long[..kept]));
    assert_eq!(rejected(&outcome), ["€€€"], "its beginning is refused too");
}

/// Refuses a call with a text that begins with "bad", and says which: what
/// `name` makes of the places of all of them.
fn naming(
    name: impl Fn(&[usize]) -> Option<usize> + Send + Sync + 'static,
) -> impl Fn(&[&str]) -> Result<(), EmbedError> + Send + Sync + 'static {
    move |texts| {
        let bad: Vec<usize> = (0..texts.len())
            .filter(|place| texts[*place].starts_with("bad"))
            .collect();
        if bad.is_empty() {
            return Ok(());
        }
        Err(EmbedError::Input {
            reason: "refused".to_owned(),
            culprit: name(&bad),
        })
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_a_refused_call_is_not_taken_for_its_culprit() {
    let server = Server::new(picky);
    let (endpoint, _running) = start(&server, SETTINGS);
    let given_up = timeout(
        Duration::from_millis(500),
        endpoint.embed(batch(&["bad"]), "n"),
    );
    let (given_up, outcome) = tokio::join!(given_up, endpoint.embed(batch(&["good"]), "n"));
    assert!(given_up.is_err());
    assert_eq!(embedded(&outcome), ["good"]);
}

#[tokio::test(start_paused = true)]
async fn a_text_that_is_named_is_found_with_few_calls() {
    let server = Server::new(naming(|bad| bad.first().copied()));
    let (endpoint, _running) = start(&server, SETTINGS);
    let mut texts: Vec<String> = (0..32).map(|n| format!("text {n}")).collect();
    texts[20] = "bad".to_owned();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let outcome = endpoint.embed(batch(&texts), "n").await;
    assert_eq!(
        (embedded(&outcome).len(), rejected(&outcome)),
        (31, vec!["bad"])
    );
    assert!(server.calls().len() <= 24, "{:?}", server.calls());
}

#[tokio::test(start_paused = true)]
async fn a_text_that_is_too_long_by_far_is_shortened_and_no_other() {
    let server = Server::new(|texts| {
        let long = texts.iter().any(|text| text.len() > 10);
        let reason = "the context length is exceeded".to_owned();
        let culprit = None;
        if long {
            return Err(EmbedError::TooLong { reason, culprit });
        }
        Ok(())
    });
    let (endpoint, _running) = start(&server, SETTINGS);
    let long = "0123456789abcdefghijklmnopqrstuv";
    let outcome = endpoint
        .embed(batch(&["a", long, "b", "c", "d"]), "n")
        .await;
    let chars: Vec<Option<u32>> = outcome.result.embedded.iter().map(|it| it.chars).collect();
    assert_eq!(chars, [None, Some(8), None, None, None]);
    assert!(server.calls().len() <= 24, "{:?}", server.calls());
}

#[tokio::test(start_paused = true)]
async fn texts_that_are_all_too_long_cost_a_few_calls_each() {
    let server = Server::new(|texts| {
        let long = texts.iter().any(|text| text.len() > 20);
        let reason = "the context length is exceeded".to_owned();
        let culprit = None;
        if long {
            return Err(EmbedError::TooLong { reason, culprit });
        }
        Ok(())
    });
    let (endpoint, _running) = start(&server, SETTINGS);
    let long: Vec<String> = (10..42).map(|n| format!("{n}{}", "x".repeat(28))).collect();
    let long: Vec<&str> = long.iter().map(String::as_str).collect();
    let outcome = endpoint.embed(batch(&long), "n").await;
    assert_eq!(outcome.result.embedded.len(), 32);
    let calls = server.calls().len();
    // Four each, and what is tried again between two that pass, which is drawn.
    assert!(calls <= 6 * 32, "{calls}");
}

#[tokio::test(start_paused = true)]
async fn what_the_embedder_had_before_it_went_down_is_waited_for() {
    let (fake, mut calls) = testing::FakeEmbedder::new();
    let settings = Settings {
        judge: judged(1, 100),
        ..SETTINGS
    };
    let (endpoint, _running) = start(&Arc::new(fake), settings);
    calls.next().await.succeed();
    endpoint.health.fit().await;
    let asked = Arc::clone(&endpoint);
    let both = tokio::spawn(async move { asked.embed(batch(&["a", "b", "c"]), "n").await });
    let (first, second) = (calls.next().await, calls.next().await);
    first.break_down("gone");
    let probe = calls.next().await;
    assert_eq!(probe.texts, ["probe"]);
    probe.break_down("gone");
    assert_eq!(endpoint.health.down().await, "gone");
    second.succeed();
    let outcome = both.await.unwrap();
    assert_eq!(embedded(&outcome), ["b"]);
    assert_eq!(outcome.failure.as_deref(), Some("gone"));
    assert!(calls.none(), "nothing more is sent");
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_embedder_is_left_alone_for_as_long_as_it_asks_and_loses_nothing() {
    let began = Instant::now();
    let busy_until = began + Duration::from_secs(30);
    let busy = move |_: &[&str]| {
        let left = busy_until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        Err(EmbedError::Overloaded {
            reason: "429".to_owned(),
            retry_after: Some(left),
        })
    };
    let server = Server::new(busy);
    let (endpoint, _running) = start(&server, SETTINGS);
    let outcome = endpoint.embed(batch(&["a", "b"]), "n").await;
    assert_eq!(
        (embedded(&outcome), outcome.failure.clone()),
        (vec!["a", "b"], None)
    );
    assert!(Instant::now() >= busy_until);
    assert_eq!(
        server.calls().len(),
        2,
        "refused once, and once again when it may be"
    );
}

#[tokio::test(start_paused = true)]
async fn an_overload_of_many_minutes_is_an_outage() {
    let server = Server::new(|_| {
        Err(EmbedError::Overloaded {
            reason: "429".to_owned(),
            retry_after: Some(Duration::from_mins(5)),
        })
    });
    let (endpoint, _running) = start(&server, SETTINGS);
    let outcome = endpoint.embed(batch(&["a"]), "n").await;
    assert_eq!(outcome.failure.as_deref(), Some("429"));
}

#[tokio::test(start_paused = true)]
async fn calls_that_take_too_long_are_made_smaller() {
    let server = Server::new(|texts| {
        let reason = "it took too long".to_owned();
        if texts.len() > 10 {
            return Err(EmbedError::Timeout { reason });
        }
        Ok(())
    });
    let (endpoint, _running) = start(&server, SETTINGS);
    let texts: Vec<String> = (0..32).map(|n| n.to_string()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let outcome = endpoint.embed(batch(&texts), "n").await;
    assert_eq!(
        (embedded(&outcome), outcome.failure.clone()),
        (texts.clone(), None)
    );
    let again = endpoint.embed(batch(&texts), "n").await;
    assert_eq!(again.failure, None);
    assert!(
        server.calls().last().unwrap().len() <= 10,
        "it is remembered"
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_that_takes_too_long_is_ended_and_what_says_so_names_the_setting() {
    let server = Server::new(|_| Ok(()));
    let timeout = Duration::from_millis(300);
    let (endpoint, _running) = start(
        &server,
        Settings {
            timeout,
            ..SETTINGS
        },
    );
    let outcome = endpoint.embed(batch(&["a"]), "n").await;
    // Probes are faster than that: it is the text, as far as can be seen.
    assert_eq!(rejected(&outcome), ["a"]);
    let reason = "the embedder took longer than embed_timeout (300ms)";
    assert_eq!(outcome.result.rejected[0].1, reason);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_nobody_waits_for_is_not_sent() {
    let server = Server::new(picky);
    let settings = Settings {
        judge: judged(1, 100),
        calls: 1,
        ..SETTINGS
    };
    let (endpoint, _running) = start(&server, settings);
    {
        let given_up = endpoint.embed(batch(&["gone 1", "gone 2", "gone 3"]), "n");
        let given_up = timeout(Duration::from_millis(1_500), given_up).await;
        assert!(given_up.is_err());
    }
    let outcome = endpoint.embed(batch(&["a"]), "n").await;
    assert_eq!(embedded(&outcome), ["a"]);
    let calls = server.calls().concat();
    assert!(!calls.contains(&"gone 3".to_owned()), "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn too_few_vectors_are_never_paired_with_texts() {
    struct Short;
    #[async_trait]
    impl Embedder for Short {
        async fn embed(&self, texts: &[&str]) -> Answer {
            Ok(texts.iter().skip(1).map(|_| Ok(vec![1.0])).collect())
        }

        async fn probe(&self, _: usize) -> Result<Probe, EmbedError> {
            Ok(Probe {
                dimension: 1,
                limits: weir_embedder::Limits::default(),
            })
        }
    }
    let (endpoint, _running) = start(&Arc::new(Short), SETTINGS);
    let outcome = endpoint.embed(batch(&["a", "b"]), "n").await;
    assert!(outcome.result.embedded.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_embedder_ends_nothing_else() {
    let server = Server::new(|texts| {
        assert!(!has(texts, "panic"), "as the test wants");
        Ok(())
    });
    let (endpoint, _running) = start(&server, SETTINGS);
    let outcome = endpoint.embed(batch(&["panic", "b"]), "n").await;
    assert_eq!(
        (embedded(&outcome), rejected(&outcome)),
        (vec!["b"], vec!["panic"])
    );
    assert!(outcome.result.rejected[0].1.contains("panicked"));
    assert_eq!(embedded(&endpoint.embed(batch(&["a"]), "n").await), ["a"]);
}

/// Cuts texts into batches of these sizes and embeds all of them at once.
fn embed_in_batches<'a>(
    server: &Arc<Server>,
    most: usize,
    texts: &'a [String],
    sizes: &[usize],
) -> Vec<(Vec<&'a str>, Outcome)> {
    let judge = judged(most, 10_000);
    let mut rest: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut batches = Vec::new();
    for size in sizes {
        let size = rest.len().min(*size);
        if size > 0 {
            batches.push(rest.drain(..size).collect::<Vec<_>>());
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let outcomes = runtime.block_on(async {
        let (endpoint, _running) = start(server, Settings { judge, ..SETTINGS });
        join_all(
            batches
                .iter()
                .map(|texts| endpoint.embed(batch(texts), "n")),
        )
        .await
    });
    batches.into_iter().zip(outcomes).collect()
}

#[tokio::test(start_paused = true)]
async fn there_is_room_for_the_calls_under_way_and_one_more() {
    let (fake, mut calls) = testing::FakeEmbedder::new();
    let (endpoint, _running) = start(&Arc::new(fake), SETTINGS);
    calls.probe().await.succeed();
    endpoint.health.fit().await;
    // Two calls at a time to begin with.
    assert_eq!(endpoint.room(), (2 + 1) * 32);
    let texts: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let asked = Arc::clone(&endpoint);
    let part = batch(&texts);
    let all = tokio::spawn(async move { asked.embed(part, "n").await });
    let (one, other) = (calls.next().await, calls.next().await);
    assert_eq!(endpoint.room(), 96 - 40);
    // A text that has its vector makes room, although its part is not whole.
    one.succeed();
    while endpoint.room() < 96 - 8 {
        tokio::task::yield_now().await;
    }
    assert!(!all.is_finished());
    other.succeed();
    assert_eq!(all.await.unwrap().result.outcomes(), 40);
    assert_eq!(endpoint.room(), 96);
}

#[tokio::test(start_paused = true)]
async fn what_is_given_back_has_what_there_is_of_it_and_ends_its_calls() {
    let (fake, mut calls) = testing::FakeEmbedder::new();
    let settings = Settings {
        judge: judged(1, 100),
        ..SETTINGS
    };
    let (endpoint, _running) = start(&Arc::new(fake), settings);
    calls.probe().await.succeed();
    let asked = Arc::clone(&endpoint);
    let part = batch(&["a", "b", "c"]);
    let all = tokio::spawn(async move { asked.embed(part, "n").await });
    calls.next().await.succeed();
    let (second, third) = (calls.next().await, calls.next().await);
    endpoint.give_back("no time");
    let outcome = all.await.unwrap();
    assert_eq!(embedded(&outcome), ["a"]);
    let left_out = outcome.result.left_out.iter().map(|key| &*key.item_id);
    assert_eq!(left_out.collect::<Vec<_>>(), ["b", "c"]);
    assert_eq!(outcome.failure.as_deref(), Some("no time"));
    second.cancelled().await;
    third.cancelled().await;
    assert_eq!(endpoint.room(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_comes_while_the_embedder_is_down_goes_back_at_once() {
    let server = Server::with(
        |_| Ok(()),
        |_| {
            let reason = "gone".to_owned();
            Err(EmbedError::Broken { reason })
        },
    );
    let (endpoint, _running) = start(&server, SETTINGS);
    endpoint.health.down().await;
    let outcome = endpoint.embed(batch(&["a"]), "n").await;
    assert_eq!(outcome.failure.as_deref(), Some("gone"));
    assert_eq!(outcome.result.outcomes(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_embedder_rests_until_something_passes_or_nothing_is_left() {
    let (fake, mut calls) = testing::FakeEmbedder::new();
    let settings = Settings {
        judge: judged(1, 100),
        calls: 1,
        ..SETTINGS
    };
    let (endpoint, _running) = start(&Arc::new(fake), settings);
    calls.probe().await.succeed();
    let overloaded = || {
        Err(EmbedError::Overloaded {
            reason: "429".to_owned(),
            retry_after: Some(Duration::from_secs(1)),
        })
    };
    let rests = |state: &crate::health::Condition| state.is_resting();
    let mut watched = endpoint.health.subscribe();
    let asked = Arc::clone(&endpoint);
    let all = tokio::spawn(async move { asked.embed(batch(&["a", "b"]), "n").await });
    calls.next().await.answer(overloaded());
    testing::soon(watched.wait_for(rests)).await.unwrap();
    let again = calls.next().await;
    assert!(endpoint.health.condition().is_resting(), "nothing passed");
    again.succeed();
    let other = calls.next().await;
    assert!(!endpoint.health.condition().is_resting(), "one passed");
    other.succeed();
    assert_eq!(embedded(&all.await.unwrap()), ["a", "b"]);
    let asked = Arc::clone(&endpoint);
    let all = tokio::spawn(async move { asked.embed(batch(&["a"]), "n").await });
    calls.next().await.answer(overloaded());
    testing::soon(watched.wait_for(rests)).await.unwrap();
    all.abort();
    let no_more = watched.wait_for(|it| !rests(it));
    testing::soon(no_more).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_another_namespace_brings_goes_with_the_next_call() {
    let server = Server::new(picky);
    let (endpoint, _running) = start(&server, SETTINGS);
    let of_many: Vec<String> = (0..320).map(|n| format!("many {n}")).collect();
    let many = of_many.chunks(32).map(|texts| {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        endpoint.embed(batch(&texts), "many")
    });
    let one = async {
        // Two calls have ended, and two are under way, a second each.
        sleep(Duration::from_millis(1_500)).await;
        endpoint.embed(batch(&["one"]), "one").await
    };
    let (_, outcome) = tokio::join!(join_all(many), one);
    assert_eq!(embedded(&outcome), ["one"]);
    let calls = server.calls();
    let with_it = |texts: &Vec<String>| texts.iter().any(|it| it == "one");
    assert_eq!(calls.iter().position(with_it), Some(4), "{calls:?}");
}

proptest! {
    #[test]
    fn exactly_the_guilty_texts_are_rejected(
        guilty in vec(any::<bool>(), 1..40), sizes in vec(1..8_usize, 40), most in 1..33_usize
    ) {
        let texts: Vec<String> = guilty.iter().enumerate()
            .map(|(n, bad)| format!("{} {n}", if *bad { "bad" } else { "good" }))
            .collect();
        let server = Server::new(picky);
        for (texts, outcome) in embed_in_batches(&server, most, &texts, &sizes) {
            let (good, bad): (Vec<&str>, Vec<&str>) = texts.iter().partition(|text| text.starts_with("good"));
            assert_eq!(embedded(&outcome), good);
            assert_eq!(rejected(&outcome), bad);
            assert_eq!(outcome.failure, None);
            for (key, reason) in &outcome.result.rejected {
                assert_eq!(*reason, format!("refused {}", key.item_id), "refused alone");
            }
        }
    }

    #[test]
    fn nobody_innocent_is_rejected_whomever_the_embedder_names(
        guilty in vec(any::<bool>(), 1..40), sizes in vec(1..8_usize, 40), most in 1..33_usize, lie in 0..5_u8
    ) {
        let texts: Vec<String> = guilty.iter().enumerate()
            .map(|(n, bad)| format!("{} {n}", if *bad { "bad" } else { "good" }))
            .collect();
        let server = Server::new(naming(move |bad| match lie {
            0 => bad.first().copied(),
            1 => bad.last().copied(),
            2 => Some(bad[0] + 1),
            3 => Some(0),
            _ => Some(bad[0] * 7 % 5),
        }));
        for (texts, outcome) in embed_in_batches(&server, most, &texts, &sizes) {
            let (good, bad): (Vec<&str>, Vec<&str>) = texts.iter().partition(|text| text.starts_with("good"));
            assert_eq!(embedded(&outcome), good);
            assert_eq!(rejected(&outcome), bad);
            assert_eq!(outcome.failure, None);
        }
    }

    #[test]
    fn exactly_the_texts_that_are_too_long_are_shortened(
        lengths in vec(1..60_usize, 1..40), sizes in vec(1..8_usize, 40), most in 1..33_usize, named in any::<bool>()
    ) {
        let texts: Vec<String> = lengths.iter().map(|length| "x".repeat(*length)).collect();
        let server = Server::new(move |texts| {
            let Some(long) = texts.iter().position(|text| text.len() > 12) else {
                return Ok(());
            };
            Err(EmbedError::TooLong { reason: "too long".to_owned(), culprit: named.then_some(long) })
        });
        for (texts, outcome) in embed_in_batches(&server, most, &texts, &sizes) {
            assert_eq!(outcome.failure, None);
            assert_eq!(rejected(&outcome), Vec::<&str>::new());
            for (text, got) in texts.iter().zip(&outcome.result.embedded) {
                let kept = got.chars.map_or(text.len(), |chars| chars as usize);
                assert!(kept == text.len() || (4..=12).contains(&kept), "{kept} of {}", text.len());
                assert_eq!(got.key.item_id, *text);
                assert_eq!(&*got.vector, testing::packed(&text[..kept]));
            }
        }
    }
}
