//! A call that is silent while others pass is given up, one of a slow embedder
//! is not, and neither proves anything against a text.

use super::*;

/// Seconds that a call takes, by how many came before it and by its texts.
type Takes = Box<dyn Fn(usize, &[&str]) -> u64 + Send + Sync>;

/// Of a call that is not answered.
const NEVER: u64 = u64::MAX;

/// An embedder whose calls take as long as the test wants.
struct Timed {
    takes: Takes,
    probe_takes: Box<dyn Fn() -> u64 + Send + Sync>,
    calls: Mutex<Vec<Vec<String>>>,
    probes: AtomicUsize,
    probes_under_way: AtomicUsize,
    most_probes: AtomicUsize,
    /// Held by the one call, or probe, that is computed, where that is so.
    one_by_one: Option<tokio::sync::Mutex<()>>,
}

impl Timed {
    /// Answers probes at once.
    fn new(takes: impl Fn(usize, &[&str]) -> u64 + Send + Sync + 'static) -> Self {
        Self {
            takes: Box::new(takes),
            probe_takes: Box::new(|| 0),
            calls: Mutex::default(),
            probes: AtomicUsize::new(0),
            probes_under_way: AtomicUsize::new(0),
            most_probes: AtomicUsize::new(0),
            one_by_one: None,
        }
    }

    async fn compute(&self, seconds: u64) {
        let _alone = match &self.one_by_one {
            Some(turn) => Some(turn.lock().await),
            None => None,
        };
        match seconds {
            NEVER => std::future::pending().await,
            _ => sleep(Duration::from_secs(seconds)).await,
        }
    }

    /// How often each of these texts was sent.
    fn sent(&self, text: &str) -> usize {
        let calls = self.calls.lock().unwrap();
        let texts = calls.iter().flatten();
        texts.filter(|sent| *sent == text).count()
    }

    fn probes(&self) -> usize {
        self.probes.load(Ordering::Relaxed)
    }
}

/// Counts one less when the probe ends, or is given up.
struct Under<'a>(&'a AtomicUsize);

impl Drop for Under<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl Embedder for Timed {
    async fn embed(&self, texts: &[&str]) -> Answer {
        let before = {
            let mut calls = self.calls.lock().unwrap();
            calls.push(texts.iter().map(|&text| text.to_owned()).collect());
            calls.len() - 1
        };
        self.compute((self.takes)(before, texts)).await;
        Ok(texts.iter().map(|text| Ok(testing::vector(text))).collect())
    }

    async fn probe(&self, _: usize) -> Result<Probe, EmbedError> {
        self.probes.fetch_add(1, Ordering::Relaxed);
        let under_way = self.probes_under_way.fetch_add(1, Ordering::Relaxed) + 1;
        let _under_way = Under(&self.probes_under_way);
        self.most_probes.fetch_max(under_way, Ordering::Relaxed);
        self.compute((self.probe_takes)()).await;
        Ok(Probe {
            dimension: 2,
            limits: weir_embedder::Limits::default(),
        })
    }
}

/// As it is for a slow embedder.
const PATIENT: Settings = Settings {
    judge: judged(4, 10_000),
    timeout: Duration::from_mins(10),
    ..SETTINGS
};

/// An endpoint of this embedder that runs, and has had one call answered.
async fn warm(embedder: &Arc<Timed>) -> (Arc<Asked>, AbortOnDropHandle<Infallible>) {
    let (endpoint, running) = start(embedder, PATIENT);
    endpoint.health.fit().await;
    let first = endpoint.embed(batch(&["first"]), "n").await;
    assert_eq!(embedded(&first), ["first"]);
    (endpoint, running)
}

/// Has these texts embedded, without being given up and sent again for ever.
async fn embed(endpoint: &Asked, texts: &[&str]) -> Outcome {
    let outcome = endpoint.embed(batch(texts), "n");
    let outcome = timeout(Duration::from_hours(5), outcome).await;
    outcome.expect("it is given up again and again")
}

/// The same, all of them and whole. Returns how long that took.
async fn all_embedded(endpoint: &Asked, texts: &[&str]) -> Duration {
    let began = Instant::now();
    let outcome = embed(endpoint, texts).await;
    assert_eq!(rejected(&outcome), Vec::<&str>::new());
    assert_eq!(outcome.failure, None);
    assert_eq!(embedded(&outcome), texts);
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_lost_is_sent_again_once_a_probe_passes() {
    let embedder = Arc::new(Timed::new(|before, _| if before == 1 { NEVER } else { 1 }));
    let (endpoint, _running) = warm(&embedder).await;
    let took = all_embedded(&endpoint, &["a", "b"]).await;
    assert!(took < Duration::from_secs(20), "{took:?}");
    let calls = embedder.calls.lock().unwrap().clone();
    assert_eq!(calls, [vec!["first"], vec!["a", "b"], vec!["a", "b"]]);
    assert_eq!(embedder.probes(), 2, "one at the start, and one beside it");
}

#[tokio::test(start_paused = true)]
async fn an_embedder_that_computes_one_call_after_the_other_is_waited_for() {
    let mut embedder = Timed::new(|before, _| if before == 0 { 1 } else { 100 });
    embedder.one_by_one = Some(tokio::sync::Mutex::new(()));
    let embedder = Arc::new(embedder);
    let (endpoint, _running) = warm(&embedder).await;
    let texts: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    all_embedded(&endpoint, &texts).await;
    let sent: Vec<usize> = texts.iter().map(|text| embedder.sent(text)).collect();
    assert_eq!(sent, [1; 20]);
    assert!(embedder.probes() > 1, "no call was silent for long");
}

#[tokio::test(start_paused = true)]
async fn an_embedder_that_is_slow_and_computes_many_calls_loses_little() {
    let servers: [Takes; 4] = [
        // All become slow at once.
        Box::new(|before, _| if before == 0 { 1 } else { 250 }),
        // By texts, by letters, and by their square.
        Box::new(|_, texts| 30 * texts.len() as u64),
        Box::new(|_, texts| texts.concat().len() as u64 / 10),
        Box::new(|_, texts| (texts.concat().len() as u64 / 50).pow(2)),
    ];
    for takes in servers {
        let embedder = Arc::new(Timed::new(takes));
        let (endpoint, _running) = warm(&embedder).await;
        let texts: Vec<String> = (0..40)
            .map(|n| format!("{n} {}", "x".repeat(7 * n)))
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        all_embedded(&endpoint, &texts).await;
        let most = texts.iter().map(|text| embedder.sent(text)).max();
        assert!(
            most <= Some(4),
            "14, 56 and 224 s, and then to the end: {most:?}"
        );
        let calls = embedder.calls.lock().unwrap().len();
        // The first, ten of four texts, and what is sent again before one of them was answered.
        assert!(calls <= 11 + 3 * 2, "{calls}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_text_that_always_takes_long_is_embedded_whole_while_others_pass() {
    let takes = |_, texts: &[&str]| if has(texts, "slow") { 590 } else { 1 };
    let embedder = Arc::new(Timed::new(takes));
    let (endpoint, _running) = warm(&embedder).await;
    let others = async {
        for _ in 0..600 {
            all_embedded(&endpoint, &["a", "b", "c", "d"]).await;
        }
    };
    let (outcome, ()) = tokio::join!(embed(&endpoint, &["slow"]), others);
    assert_eq!(embedded(&outcome), ["slow"]);
    assert!(embedder.sent("slow") <= 4, "{}", embedder.sent("slow"));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_silent_like_everything_else_ends_at_embed_timeout() {
    let mut embedder = Timed::new(|before, _| if before == 0 { 1 } else { NEVER });
    let hangs = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&hangs);
    embedder.probe_takes = Box::new(move || {
        if seen.load(Ordering::Relaxed) {
            NEVER
        } else {
            0
        }
    });
    let embedder = Arc::new(embedder);
    let (endpoint, _running) = warm(&embedder).await;
    hangs.store(true, Ordering::Relaxed);
    let began = Instant::now();
    // Two calls.
    let texts = ["a", "b", "c", "d", "e"];
    let asked = Arc::clone(&endpoint);
    let asked = tokio::spawn(async move { asked.embed(batch(&texts), "n").await });
    sleep(PATIENT.timeout.mul_f64(0.99)).await;
    assert_eq!(embedder.calls.lock().unwrap().len(), 1 + 2);
    assert_eq!(embedder.most_probes.load(Ordering::Relaxed), 1);
    let probes = embedder.probes();
    assert!((5..=20).contains(&probes), "ever more rarely: {probes}");
    let outcome = asked.await.unwrap();
    assert!(began.elapsed() >= PATIENT.timeout);
    assert!(outcome.result.outcomes() == 0);
    let reason = outcome.failure.unwrap();
    assert!(reason.contains("embed_timeout"), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn as_long_as_no_call_was_answered_embed_timeout_alone_holds() {
    let embedder = Arc::new(Timed::new(|before, _| if before == 0 { NEVER } else { 1 }));
    let (endpoint, _running) = start(&embedder, PATIENT);
    endpoint.health.fit().await;
    let took = all_embedded(&endpoint, &["a", "b"]).await;
    assert!(took >= PATIENT.timeout, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_call_adds_no_probes_to_those_of_an_embedder_that_is_down() {
    struct Breaks {
        timed: Timed,
        is_down: Arc<AtomicBool>,
    }
    impl Breaks {
        fn check(&self) -> Result<(), EmbedError> {
            if self.is_down.load(Ordering::Relaxed) {
                let reason = "gone".to_owned();
                return Err(EmbedError::Broken { reason });
            }
            Ok(())
        }
    }
    #[async_trait]
    impl Embedder for Breaks {
        async fn embed(&self, texts: &[&str]) -> Answer {
            if has(texts, "deadly") {
                self.is_down.store(true, Ordering::Relaxed);
            }
            // What is lost before it breaks is not answered by that.
            if !has(texts, "lost") || self.timed.sent("lost") > 0 {
                self.check()?;
            }
            self.timed.embed(texts).await
        }

        async fn probe(&self, bytes: usize) -> Result<Probe, EmbedError> {
            let passed = self.timed.probe(bytes).await;
            self.check().and(passed)
        }
    }
    let is_down = Arc::new(AtomicBool::new(false));
    let embedder = Arc::new(Breaks {
        timed: Timed::new(|before, _| if before == 1 { NEVER } else { 1 }),
        is_down: Arc::clone(&is_down),
    });
    let (endpoint, _running) = start(&embedder, PATIENT);
    endpoint.health.fit().await;
    all_embedded(&endpoint, &["first"]).await;
    let asked = Arc::clone(&endpoint);
    let lost = tokio::spawn(async move { asked.embed(batch(&["lost"]), "n").await });
    while embedder.timed.sent("lost") == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    let deadly = endpoint.embed(batch(&["deadly"]), "n").await;
    assert_eq!(deadly.failure.as_deref(), Some("gone"));
    let before = embedder.timed.probes();
    sleep(Duration::from_mins(1)).await;
    let probes = embedder.timed.probes() - before;
    assert!((50..=61).contains(&probes), "one a second: {probes}");
    assert!(!lost.is_finished());
    is_down.store(false, Ordering::Relaxed);
    let back = Instant::now();
    assert_eq!(embedded(&lost.await.unwrap()), ["lost"]);
    let late = back.elapsed();
    assert!(late < Duration::from_secs(5), "{late:?}");
}
