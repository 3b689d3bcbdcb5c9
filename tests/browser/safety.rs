//! What comes from data stays data, nothing leaves the host, and the page can
//! be used by all.

use std::fs;

use serde_json::{Value, json};
use weir_tests::clients::{Weir, item, put_items};

use crate::{
    browser::{Browser, target},
    scene::{PATIENT, every_state, fail, reject_last},
};

/// Would run, if it were ever taken for markup.
const MARKUP: &str = "<img src=x onerror=\"window.taken=1\"><script>window.taken=1</script>";

#[tokio::test]
async fn markup_in_data_is_text() {
    let weir = Weir::with(&PATIENT).await;
    let url = weir.coordinator.url();
    let request = put_items("a", vec![item(MARKUP, "text"), item("z", "other")]);
    weir.sources().put_source(request).await.unwrap();
    let lease = weir.claim().await;
    fail(&weir, &lease, MARKUP).await;
    let browser = Browser::open(&url).await;
    let markup = json!(MARKUP);
    browser
        .click("row('default/a').querySelector('.badge')")
        .await;
    browser.until(&format!("tip().startsWith({markup})")).await;
    browser.until("document.querySelector('.cause')").await;

    crate::scene::due(&weir, lease.job_id).await;
    let lease = weir.claim().await;
    reject_last(&weir, &lease, MARKUP).await;
    let request = put_items("b", vec![item(MARKUP, "text")]);
    weir.sources().put_source(request).await.unwrap();
    let lease = weir.claim().await;
    reject_last(&weir, &lease, MARKUP).await;
    browser
        .goto(&format!("{url}/#/sources/default/b/{}", lease.job_id))
        .await;
    browser.until(&format!("all('section[aria-label=\"Rejected chunks\"] td').filter((it) => text(it) === {markup}).length === 2")).await;
    browser
        .until(&format!(
            "text(document.querySelector('.facts')).includes({markup})"
        ))
        .await;
    // What turns the direction of writing round turns its own words alone.
    browser
        .until("all('main a, main span, main code, main bdi').every((it) => getComputedStyle(it).unicodeBidi === 'isolate')")
        .await;
    browser
        .until("all('.facts bdi').length === 2 && all('main code bdi').length === 1")
        .await;
    // And in the address.
    browser
        .goto(&format!(
            "{url}/#/sources/default/%3Cimg%20src%3Dx%20onerror%3D%22window.taken%3D1%22%3E"
        ))
        .await;
    browser
        .until("text(document.querySelector('main')).includes('<img src=x')")
        .await;
    assert_eq!(
        browser
            .is("document.querySelector('img[src=x], main script')")
            .await,
        Value::Null
    );
    assert_eq!(browser.is("window.taken ?? null").await, Value::Null);
}

#[tokio::test]
async fn a_script_that_came_in_would_not_run() {
    let weir = Weir::start().await;
    let browser = Browser::open(&weir.coordinator.url()).await;
    browser.until("verdict() === 'healthy'").await;
    let inline = "
        const script = document.createElement('script');
        try { script.textContent = 'window.taken = 1'; document.body.append(script); } catch {}
        const image = document.createElement('p');
        try { image.innerHTML = '<img src=x onerror=\"window.taken = 1\">'; } catch {}
        return [window.taken ?? null, image.children.length]";
    assert_eq!(browser.run(inline).await, json!([null, 0]));
}

#[tokio::test]
async fn no_request_leaves_the_host_and_nothing_complains() {
    let weir = Weir::with(&PATIENT).await;
    every_state(&weir).await;
    let url = weir.coordinator.url();
    let browser = Browser::open(&url).await;
    browser.until("verdict() === 'degraded' && document.querySelector('.cause') && document.querySelector('.plot')").await;
    browser.goto(&format!("{url}/#/failures")).await;
    browser
        .until("title() === 'Failures' && document.querySelector('.cause')")
        .await;
    browser
        .goto(&format!("{url}/#/sources/default/handbook"))
        .await;
    browser.until("row('item-') && row('succeeded')").await;
    let requests: Vec<String> = browser
        .log("performance")
        .await
        .iter()
        .filter(|message| message["method"] == "Network.requestWillBeSent")
        .map(|message| {
            message["params"]["request"]["url"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let paged = requests.iter().filter(|it| it.starts_with(&url)).count();
    assert!(paged > 20, "{requests:?}");
    // What the browser shows before the page is of its own making, and in itself.
    let away = |it: &&String| {
        !it.starts_with(&url) && !it.starts_with("chrome:") && !it.starts_with("data:")
    };
    let others: Vec<_> = requests.iter().filter(away).collect();
    assert!(others.is_empty(), "{others:?}");
    let complaints = browser.log("browser").await;
    assert!(complaints.is_empty(), "{complaints:?}");
}

#[tokio::test]
async fn nothing_keeps_anybody_from_using_it() {
    let weir = Weir::with(&PATIENT).await;
    every_state(&weir).await;
    let url = weir.coordinator.url();
    let axe =
        fs::read_to_string(target().join("axe/axe.min.js")).expect("`make test-browser` gets axe");
    let browser = Browser::open(&url).await;
    for scheme in ["light", "dark"] {
        browser.prefer(scheme).await;
        for (page, there) in [
            (
                "#/",
                "document.querySelector('.cause') && row('wiki/pages')",
            ),
            (
                "#/failures",
                "title() === 'Failures' && document.querySelector('.cause')",
            ),
            (
                "#/sources/default/handbook",
                "row('item-') && row('succeeded')",
            ),
        ] {
            browser.goto(&format!("{url}/{page}")).await;
            browser.until(there).await;
            browser.run(&axe).await;
            browser
                .run("window.found = null; axe.run().then((found) => (window.found = found))")
                .await;
            browser.until("window.found").await;
            let faults = browser
                .is("window.found.violations.filter((it) => ['serious', 'critical'].includes(it.impact))
                        .map((it) => it.help + ': ' + it.nodes.map((node) => node.html).join(' '))")
                .await;
            assert_eq!(faults, json!([]), "{scheme} {page}");
            assert!(browser.is("window.found.passes.length").await.as_u64() > Some(20));
        }
    }
}
