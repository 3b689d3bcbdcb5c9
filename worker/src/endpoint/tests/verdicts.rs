//! A verdict needs proof: nothing is rejected, and nobody is charged, because of
//! what an embedder says or fails to say, before it has embedded something else.

use super::*;

/// Returns when a server of these texts, which are good, has all of them
/// embedded that were given back meanwhile: how often that was, and why.
async fn embed_all(endpoint: &Asked, texts: &[&str]) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut left = texts.to_vec();
    while !left.is_empty() {
        endpoint.health.fit().await;
        let outcome = endpoint.embed(batch(&left), "n").await;
        assert_eq!(rejected(&outcome), Vec::<&str>::new());
        let done = embedded(&outcome);
        left.retain(|text| !done.contains(text));
        reasons.extend(outcome.failure);
    }
    reasons
}

/// Fails everything, probes too, from the first call with a text on for so
/// long.
fn outage(
    lasts: Duration,
    error: impl Fn() -> EmbedError + Clone + Send + Sync + 'static,
) -> Arc<Server> {
    let began = Arc::new(Mutex::new(None));
    let (first, later) = (Arc::clone(&began), error.clone());
    let is_over = move |began: Option<Instant>| began.is_some_and(|began| began.elapsed() >= lasts);
    Server::with(
        move |_| {
            let began = *first.lock().unwrap().get_or_insert_with(Instant::now);
            if is_over(Some(began)) {
                Ok(())
            } else {
                Err(error())
            }
        },
        move |_| match *began.lock().unwrap() {
            None => Ok(()),
            began if is_over(began) => Ok(()),
            Some(_) => Err(later()),
        },
    )
}

#[tokio::test(start_paused = true)]
async fn whatever_an_embedder_says_that_embeds_nothing_rejects_nothing() {
    let reason = || "said".to_owned();
    let errors: [fn(String) -> EmbedError; 7] = [
        |reason| EmbedError::Input {
            reason,
            culprit: Some(0),
        },
        |reason| EmbedError::Input {
            reason,
            culprit: None,
        },
        |reason| EmbedError::TooLong {
            reason,
            culprit: Some(1),
        },
        |reason| EmbedError::TooMany { reason },
        |reason| EmbedError::Transient { reason },
        |reason| EmbedError::Broken { reason },
        |reason| EmbedError::Timeout { reason },
    ];
    for error in errors {
        let server = outage(Duration::from_mins(3), move || error(reason()));
        let (endpoint, _running) = start(&server, SETTINGS);
        let reasons = embed_all(&endpoint, &["a", "b", "c", "d", "e"]).await;
        assert_eq!(
            reasons,
            ["said"],
            "given back once, and not claimed again before it is fit"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_quota_that_is_used_up_rejects_nothing_however_it_says_so() {
    for retry_after in [None, Some(0), Some(1), Some(7), Some(3_600)] {
        let server = outage(Duration::from_mins(5), move || EmbedError::Overloaded {
            reason: "429".to_owned(),
            retry_after: retry_after.map(Duration::from_secs),
        });
        let (endpoint, _running) = start(&server, SETTINGS);
        let began = Instant::now();
        embed_all(&endpoint, &["a", "b", "c", "d", "e"]).await;
        // Whatever it asks for, it is probed at least every 30 s.
        let late = began.elapsed().saturating_sub(Duration::from_mins(5));
        assert!(late < Duration::from_secs(40), "{retry_after:?}: {late:?}");
    }
}

/// Never answers what is sent while it hangs.
struct Hanging(AtomicBool);

impl Hanging {
    async fn wait(&self) {
        if self.0.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Embedder for Hanging {
    async fn embed(&self, texts: &[&str]) -> Answer {
        self.wait().await;
        Ok(texts.iter().map(|text| Ok(testing::vector(text))).collect())
    }

    async fn probe(&self, _: usize) -> Result<Probe, EmbedError> {
        self.wait().await;
        Ok(Probe {
            dimension: 2,
            limits: weir_embedder::Limits::default(),
        })
    }
}

#[tokio::test(start_paused = true)]
async fn an_embedder_that_hangs_charges_nobody_and_goes_on_when_it_is_back() {
    let embedder = Arc::new(Hanging(AtomicBool::new(false)));
    let (endpoint, _running) = start(&embedder, SETTINGS);
    endpoint.health.fit().await;
    embedder.0.store(true, Ordering::Relaxed);
    let outcome = endpoint.embed(batch(&["a", "b"]), "n").await;
    assert!(outcome.result.outcomes() == 0);
    let reason = outcome.failure.unwrap();
    assert!(reason.contains("embed_timeout"), "{reason}");
    // In the middle of a probe, whose answer never comes.
    sleep(SETTINGS.timeout * 10 + Duration::from_millis(300)).await;
    assert!(endpoint.health.ailment().is_some());
    embedder.0.store(false, Ordering::Relaxed);
    let back = Instant::now();
    assert_eq!(
        embed_all(&endpoint, &["a", "b"]).await,
        Vec::<String>::new()
    );
    let late = back.elapsed();
    assert!(late <= Duration::from_secs(2), "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn an_embedder_that_loads_its_model_for_a_minute_is_found_fit_after_that() {
    /// Begins to load anew with each request.
    struct Cold(AtomicUsize);
    #[async_trait]
    impl Embedder for Cold {
        async fn embed(&self, _: &[&str]) -> Answer {
            unreachable!("nothing is to be embedded")
        }

        async fn probe(&self, _: usize) -> Result<Probe, EmbedError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_mins(1)).await;
            Ok(Probe {
                dimension: 2,
                limits: weir_embedder::Limits::default(),
            })
        }
    }
    let cold = Arc::new(Cold(AtomicUsize::new(0)));
    let settings = Settings {
        timeout: Duration::from_mins(5),
        ..SETTINGS
    };
    let (endpoint, _running) = start(&cold, settings);
    let began = Instant::now();
    let fit = timeout(Duration::from_mins(10), endpoint.health.fit()).await;
    assert!(fit.is_ok(), "it is never found fit");
    assert_eq!(began.elapsed(), Duration::from_mins(1));
    let probes = cold.0.load(Ordering::Relaxed);
    assert!(probes <= 61, "one a second: {probes}");
}

#[tokio::test(start_paused = true)]
async fn a_text_that_breaks_the_connection_is_found_and_its_neighbours_are_embedded() {
    for error in [
        |reason: String| EmbedError::Broken { reason },
        |reason| EmbedError::Transient { reason },
        |reason| EmbedError::Timeout { reason },
    ] {
        let server = Server::new(move |texts| {
            if has(texts, "deadly") {
                return Err(error("it died".to_owned()));
            }
            Ok(())
        });
        let (endpoint, _running) = start(&server, SETTINGS);
        let mut texts: Vec<String> = (0..20).map(|n| format!("text {n}")).collect();
        texts[7] = "deadly".to_owned();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let outcome = endpoint.embed(batch(&texts), "n").await;
        assert_eq!(
            (rejected(&outcome), &outcome.failure),
            (vec!["deadly"], &None)
        );
        assert_eq!(embedded(&outcome).len(), 19);
    }
}

#[tokio::test(start_paused = true)]
async fn a_flawed_vector_costs_its_text_and_no_other() {
    struct Flawed;
    #[async_trait]
    impl Embedder for Flawed {
        async fn embed(&self, texts: &[&str]) -> Answer {
            let vector = |text: &&str| {
                if text.starts_with("nan") {
                    return Err("holds NaN".to_owned());
                }
                Ok(testing::vector(text))
            };
            Ok(texts.iter().map(vector).collect())
        }

        async fn probe(&self, _: usize) -> Result<Probe, EmbedError> {
            Ok(Probe {
                dimension: 2,
                limits: weir_embedder::Limits::default(),
            })
        }
    }
    let (endpoint, _running) = start(&Arc::new(Flawed), SETTINGS);
    let outcome = endpoint.embed(batch(&["a", "nan", "b"]), "n").await;
    assert_eq!(
        (embedded(&outcome), rejected(&outcome)),
        (vec!["a", "b"], vec!["nan"])
    );
    assert_eq!(outcome.result.rejected[0].1, "holds NaN");
}

#[tokio::test(start_paused = true)]
async fn while_it_is_down_an_embedder_gets_a_probe_a_second_and_work_at_the_first_that_passes() {
    let gone = || EmbedError::Embedder {
        reason: "gone".to_owned(),
        retry_after: None,
    };
    for minutes in [1, 30] {
        let lasts = Duration::from_mins(minutes);
        let server = outage(lasts, gone);
        let (endpoint, _running) = start(&server, SETTINGS);
        let began = Instant::now();
        embed_all(&endpoint, &["a", "b", "c"]).await;
        let probes = server.probes.load(Ordering::Relaxed);
        let seconds = lasts.as_secs() as usize;
        assert!(
            (seconds - 10..=seconds + 2).contains(&probes),
            "{probes} in {seconds} s"
        );
        let late = began.elapsed().saturating_sub(lasts);
        // The first call took a second, and so did the last.
        assert!(late <= Duration::from_secs(4), "{late:?}");
        // Nothing that has its vector is sent again.
        let sent = server.calls().concat();
        assert_eq!(sent.len(), 3 + 3, "{sent:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_nobody_waits_for_proves_nothing() {
    let (fake, mut calls) = testing::FakeEmbedder::new();
    let (endpoint, _running) = start(&Arc::new(fake), SETTINGS);
    calls.probe().await.succeed();
    endpoint.health.fit().await;
    for _ in 0..5 {
        let asked = Arc::clone(&endpoint);
        let given_up = tokio::spawn(async move { asked.embed(batch(&["a", "b"]), "n").await });
        let call = calls.next().await;
        given_up.abort();
        call.cancelled().await;
    }
    let asked = Arc::clone(&endpoint);
    let both = tokio::spawn(async move { asked.embed(batch(&["a", "b"]), "n").await });
    // No probe comes first, and no half of it.
    let call = calls.next().await;
    assert_eq!(call.texts, ["a", "b"]);
    call.succeed();
    assert_eq!(embedded(&both.await.unwrap()), ["a", "b"]);
    // Nothing is taken to be at the embedder still, beside which no trial could begin.
    calls.answer_with(|call| {
        if call.texts.iter().any(|text| text == "bad") {
            call.refuse("refused");
        } else {
            call.succeed();
        }
    });
    let outcome = endpoint.embed(batch(&["c", "bad", "d"]), "n");
    let outcome = timeout(Duration::from_mins(10), outcome).await;
    let outcome = outcome.expect("it waits for a call that was given up");
    assert_eq!(
        (embedded(&outcome), rejected(&outcome)),
        (vec!["c", "d"], vec!["bad"])
    );
}
