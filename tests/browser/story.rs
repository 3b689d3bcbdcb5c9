//! What an operator sees and does, from the first source to the last failure.

use serde_json::json;
use weir_proto::v1::JobState;
use weir_tests::{
    cluster::{Coordinator, Worker},
    embedder::Rude,
    world::World,
};

use crate::{browser::Browser, scene::PATIENT};

fn items(count: usize) -> impl Iterator<Item = (String, String)> {
    (0..count).map(|id| (format!("{id:03}"), format!("the text of item {id}")))
}

fn is_work(texts: &[String]) -> bool {
    texts != ["probe"]
}

/// Waits until the page has this badge of the source, without a word about it
/// from anybody else.
async fn badge(browser: &Browser, text: &str) {
    browser
        .until(&format!("badge('default/pages') === {}", json!(text)))
        .await;
}

async fn verdict(browser: &Browser, word: &str) {
    browser
        .until(&format!("verdict() === {}", json!(word)))
        .await;
}

#[tokio::test]
async fn a_source_is_seen_from_queued_to_indexed_and_ticks_in_between() {
    let world = World::start(&PATIENT).await;
    let browser = Browser::open(&world.coordinator.url()).await;
    browser
        .until("text(document.querySelector('main')).includes('There is no source here')")
        .await;
    verdict(&browser, "healthy").await;
    world.put_items("pages", items(24)).await;
    badge(&browser, "queued").await;
    verdict(&browser, "indexing").await;

    world.embedder.close_gate();
    let _worker = world.worker("4");
    let mut before = -1;
    for calls in 1.. {
        world.embedder.let_through(calls);
        if before >= 8 {
            break;
        }
        world.embedder.calls_started(calls).await;
        let more = format!(
            "((text) => {{ const [, done] = /^indexing (\\d+)\\/24$/.exec(text) ?? []; return Number(done) > {before} && done }})(badge('default/pages'))"
        );
        // The first call may be the worker's probe, which embeds nothing.
        let done = browser.until(&more).await;
        before = done.as_str().unwrap().parse().unwrap();
    }
    world.embedder.open_gate();
    badge(&browser, "24/24 indexed").await;
    verdict(&browser, "healthy").await;
    world.assert_exact("pages").await;
}

/// Awaits that the tip of the source's badge has these words. A job that is
/// claimed once more has no error for a moment, and its badge no tip.
async fn tells(browser: &Browser, words: &str) {
    let badge = "row('default/pages').querySelector('.badge')";
    let words = json!(words);
    browser
        .until(&format!(
            "(tip() || {badge}.focus(), tip().includes({words}))"
        ))
        .await;
}

#[tokio::test]
async fn a_black_hole_is_told_of_and_what_fell_into_it_goes_on_by_itself() {
    let world = World::start(&PATIENT).await;
    let browser = Browser::open(&world.coordinator.url()).await;
    let settings = [("WEIR_EMBED_TIMEOUT", "500ms"), ("WEIR_BATCH_SIZE", "8")];
    let worker = Worker::spawn(&world.coordinator.url(), &world.embedder.url(), &settings);
    worker.process.wait_for_event("The embedder answers.").await;
    world.embedder.rule(|_| Some(Rude::Hang));
    world.put_items("pages", items(8)).await;
    browser
        .until("reasons().join() === '1 job waits for an embedder that is down or was refused'")
        .await;
    verdict(&browser, "degraded").await;
    tells(&browser, "took longer than 500ms").await;
    world.embedder.behave();
    badge(&browser, "8/8 indexed").await;
    verdict(&browser, "healthy").await;
}

#[tokio::test]
async fn what_was_rejected_is_the_reason_until_a_button_takes_it_back() {
    let world = World::start(&PATIENT).await;
    let browser = Browser::open(&world.coordinator.url()).await;
    let _worker = world.worker("8");
    world.embedder.rule(|texts| {
        let odd = texts.iter().any(|text| text.contains("NANTEXT"));
        odd.then(|| Rude::Status(500, None, "NaN".to_owned()))
    });
    let odd = ("odd".to_owned(), "NANTEXT".to_owned());
    let put = items(7).chain([odd]);
    world.put_items("pages", put).await;
    badge(&browser, "7/8 indexed, 1 rejected").await;
    verdict(&browser, "degraded").await;
    browser
        .until(
            "reasons().length === 1 && reasons()[0].startsWith('1 of 8 chunks rejected, since ')",
        )
        .await;
    browser.click("link('default/pages')").await;
    browser
        .until("document.querySelector('.trouble').textContent.includes('NaN')")
        .await;
    world.embedder.behave();
    let retry = "Retry what was rejected of default/pages";
    browser.click(&format!("button({})", json!(retry))).await;
    browser
        .until("text(document.querySelector('.source .badge')) === '8/8 indexed'")
        .await;
    browser.until(&format!("!button({})", json!(retry))).await;
    browser.click("link('Overview')").await;
    verdict(&browser, "healthy").await;
    world.assert_exact("pages").await;
}

#[tokio::test]
async fn an_embedder_that_is_down_is_the_reason_and_no_jobs_fault() {
    let world = World::start(&PATIENT).await;
    let browser = Browser::open(&world.coordinator.url()).await;
    let worker = world.worker("8");
    worker.process.wait_for_event("The embedder answers.").await;
    world
        .embedder
        .rule(|_| Some(Rude::Status(503, None, "starting".to_owned())));
    world.put_items("pages", items(8)).await;
    browser
        .until("reasons().join() === '1 job waits for an embedder that is down or was refused'")
        .await;
    tells(&browser, "503").await;
    world.embedder.behave();
    badge(&browser, "8/8 indexed").await;
    verdict(&browser, "healthy").await;
}

#[tokio::test]
async fn what_fails_is_retried_forced_cancelled_dismissed_and_deleted_by_hand() {
    let world = World::start(&PATIENT).await;
    let url = world.coordinator.url();
    let browser = Browser::open(&url).await;
    let failing = world.failing_worker("0 vectors for 8 texts").await;
    let job_id = world.put_items("pages", items(8)).await.jobs[0].job_id;

    // It is tried, and waits for long.
    badge(&browser, "retrying (1 try)").await;
    verdict(&browser, "degraded").await;
    browser
        .click("row('default/pages').querySelector('.badge')")
        .await;
    browser
        .until("/vectors for.*next run in \\d+ .*, at .*\\d\\d:\\d\\d/.test(tip())")
        .await;
    let cause = "text(document.querySelector('.cause'))";
    browser
        .until(&format!(
            "{cause}.includes('vectors for') && text(row('vectors for')).includes('1×')"
        ))
        .await;

    // Whoever presses the button need not wait. It fails again.
    browser
        .click("button('Retry job', row('default/pages'))")
        .await;
    browser
        .until("text(row('vectors for')).includes('2×')")
        .await;
    badge(&browser, "retrying (1 try)").await;
    due(&world, job_id).await;
    badge(&browser, "retrying (2 tries)").await;
    due(&world, job_id).await;
    badge(&browser, "failed").await;
    browser.until("reasons().join() === '1 job failed'").await;

    // Its tries are told.
    browser
        .click("link('default/pages', row('default/pages'))")
        .await;
    browser
        .click(&format!("link('Job {job_id} and its tries')"))
        .await;
    browser
        .until("all('.under tbody tr').filter((it) => text(it).startsWith('failed')).length === 4")
        .await;
    browser.goto(&format!("{url}/#/failures")).await;
    browser
        .click("link(text(document.querySelector('.cause')))")
        .await;
    browser
        .until(&format!(
            "text(document.querySelector('.under')).includes('{job_id}')"
        ))
        .await;

    // A failure that is dismissed is gone, and its job is failed still.
    browser.click("button('Dismiss')").await;
    browser
        .until("text(document.querySelector('main')).includes('No failure since')")
        .await;
    assert_eq!(world.job(job_id).await.state(), JobState::Failed);

    drop(failing);
    let _worker = world.worker("8");
    browser
        .goto(&format!("{url}/#/sources/default/pages"))
        .await;
    browser.click("button('Retry job')").await;
    browser
        .until("text(document.querySelector('.badge')) === '8/8 indexed'")
        .await;

    force_cancel_and_delete(&world, &browser).await;
}

/// Has the time of a job come.
async fn due(world: &World, job_id: i64) {
    sqlx::query("UPDATE weir.jobs SET run_at = now() WHERE id = $1")
        .bind(job_id)
        .execute(world.database.pool())
        .await
        .unwrap();
}

async fn force_cancel_and_delete(world: &World, browser: &Browser) {
    let newest = "all('[aria-labelledby=jobs] tbody a')[0]";
    let embedded = |times| {
        let received = world.embedder.received();
        received["the text of item 3"] == times
    };
    let before = world.embedder.received()["the text of item 3"];

    // Nothing is forced that was not said twice.
    browser.click(newest).await;
    browser.click("button('Force job')").await;
    browser.click("button('Leave it')").await;
    browser.until("!document.querySelector('dialog')").await;
    assert!(embedded(before));
    world.embedder.close_gate();
    browser.click("button('Force job')").await;
    browser.click("button('Force the job')").await;
    browser
        .until("text(document.querySelector('.badge')) === 'indexing 0/8'")
        .await;

    browser.click("button('Cancel job')").await;
    browser.click("button('Cancel the job')").await;
    browser
        .until("text(document.querySelector('.badge')) === 'not indexed'")
        .await;
    world.embedder.open_gate();
    assert_eq!(world.rows("embeddings").await, 0);
    browser.click("button('Retry job')").await;
    browser
        .until("text(document.querySelector('.badge')) === '8/8 indexed'")
        .await;

    browser.click("button('Delete')").await;
    browser.click("button('Delete the source')").await;
    browser
        .until("text(document.querySelector('main')).includes('There is no source here')")
        .await;
    assert_eq!(world.rows("sources").await, 0);
}

#[tokio::test]
async fn the_page_outlives_the_coordinator() {
    let mut world = World::start(&PATIENT).await;
    let address = world.coordinator.address().to_string();
    let browser = Browser::open(&world.coordinator.url()).await;
    browser.until("connection() === 'live'").await;
    browser.run("window.kept = true").await;
    world.coordinator.process.sigterm();
    world.coordinator.process.wait().await;
    browser.until("connection() === 'reconnecting…'").await;

    let environment = [&PATIENT[..], &[("WEIR_LISTEN", address.as_str())]].concat();
    world.coordinator = Coordinator::spawn(world.database.url(), &environment).await;
    browser.until("connection() === 'live'").await;
    world.put_items("pages", items(2)).await;
    badge(&browser, "queued").await;
    verdict(&browser, "indexing").await;
    assert_eq!(browser.is("window.kept").await, true, "it was loaded anew");
}
