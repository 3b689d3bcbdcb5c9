//! How many streams a page has, and when.

use tokio::time::timeout;
use weir_tests::{PATIENCE, clients::Weir};

use crate::{
    browser::Browser,
    scene::{PATIENT, complete, embed, put},
};

/// The events of its network since this was asked last, of this kind.
async fn events(browser: &Browser, method: &str, seen: &mut Vec<serde_json::Value>) -> usize {
    seen.extend(browser.log("performance").await);
    let streams: Vec<&str> = seen
        .iter()
        .filter(|it| it["method"] == "Network.requestWillBeSent")
        .filter(|it| {
            it["params"]["request"]["url"]
                .as_str()
                .is_some_and(|url| url.contains("/Watch"))
        })
        .filter_map(|it| it["params"]["requestId"].as_str())
        .collect();
    let of = |it: &&serde_json::Value| {
        it["method"] == method
            && it["params"]["requestId"]
                .as_str()
                .is_some_and(|id| streams.contains(&id))
    };
    seen.iter().filter(of).count()
}

/// Waits until as many streams were ended by the page.
async fn ended(browser: &Browser, number: usize, seen: &mut Vec<serde_json::Value>) {
    let all = async { while events(browser, "Network.loadingFailed", seen).await < number {} };
    let waited = timeout(PATIENCE, all).await;
    assert!(waited.is_ok(), "fewer than {number} streams were ended");
}

#[tokio::test]
async fn a_tab_has_two_streams_and_a_hidden_one_none() {
    let weir = Weir::with(&PATIENT).await;
    put(&weir, "default", "pages", 3).await;
    let browser = Browser::open(&weir.coordinator.url()).await;
    browser
        .until("badge('default/pages') === 'queued' && connection() === 'live'")
        .await;
    let mut seen = Vec::new();
    let begun = events(&browser, "Network.requestWillBeSent", &mut seen).await;
    assert_eq!(begun, 2);
    assert_eq!(
        events(&browser, "Network.loadingFailed", &mut seen).await,
        0
    );

    // What is on another page is no longer followed here.
    browser.click("link('default/pages')").await;
    browser.until("row('queued')").await;
    ended(&browser, 1, &mut seen).await;
    assert_eq!(
        events(&browser, "Network.requestWillBeSent", &mut seen).await,
        3
    );

    let turn = |hidden: bool| {
        format!(
            "Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }});
             document.dispatchEvent(new Event('visibilitychange'))"
        )
    };
    browser.run(&turn(true)).await;
    ended(&browser, 3, &mut seen).await;
    let lease = weir.claim().await;
    embed(&weir, &lease, 3).await;
    complete(&weir, &lease).await;
    browser.run(&turn(false)).await;
    browser
        .until(
            "text(document.querySelector('.badge')) === '3/3 indexed' && connection() === 'live'",
        )
        .await;
    browser.until("row('succeeded')").await;
    assert_eq!(
        events(&browser, "Network.requestWillBeSent", &mut seen).await,
        5
    );
}
