//! Every badge and every verdict, on the page as the coordinator has it.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use weir_proto::v1::{BadgeState, GetStatusRequest, ListSourcesRequest, Verdict};
use weir_tests::clients::Weir;

use crate::{
    browser::Browser,
    scene::{PATIENT, complete, embed, every_state, put},
};

async fn verdict(weir: &Weir) -> (Verdict, Vec<String>) {
    let status = weir.jobs().get_status(GetStatusRequest::default()).await;
    let total = status.unwrap().into_inner().total.unwrap();
    (total.verdict(), total.reasons)
}

/// Waits until the page has the coordinator's verdict, and returns it.
async fn shown_verdict(weir: &Weir, browser: &Browser) -> Verdict {
    let (verdict, reasons) = verdict(weir).await;
    let word = verdict.as_str_name().trim_start_matches("VERDICT_");
    let shown = json!(word.to_lowercase());
    let reasons = Value::from(reasons);
    let same =
        format!("verdict() === {shown} && JSON.stringify(reasons()) === JSON.stringify({reasons})");
    browser.until(&same).await;
    verdict
}

#[tokio::test]
async fn the_page_and_the_api_say_the_same_of_every_state() {
    let weir = Weir::with(&PATIENT).await;
    let browser = Browser::open(&weir.coordinator.url()).await;
    assert_eq!(shown_verdict(&weir, &browser).await, Verdict::Healthy);
    put(&weir, "default", "first", 3).await;
    assert_eq!(shown_verdict(&weir, &browser).await, Verdict::Indexing);
    let lease = weir.claim().await;
    embed(&weir, &lease, 3).await;
    complete(&weir, &lease).await;
    assert_eq!(shown_verdict(&weir, &browser).await, Verdict::Healthy);
    every_state(&weir).await;
    assert_eq!(shown_verdict(&weir, &browser).await, Verdict::Degraded);

    let listed = weir
        .sources()
        .list_sources(ListSourcesRequest::default())
        .await;
    let mut states = BTreeSet::new();
    for summary in listed.unwrap().into_inner().sources {
        let source = summary.source.unwrap();
        let (name, badge) = (
            format!("{}/{}", source.namespace, source.name),
            source.badge.unwrap(),
        );
        states.insert(badge.state);
        let (name, text) = (json!(name), json!(badge.text));
        browser.until(&format!("badge({name}) === {text}")).await;
        println!("{name}: {text}");
    }
    let every = BadgeState::Empty as i32..=BadgeState::Failed as i32;
    assert_eq!(states, every.collect(), "a state is missing in the scene");

    for (namespace, state) in [
        ("default", "indexing"),
        ("shop", "degraded"),
        ("wiki", "degraded"),
    ] {
        let row = format!(
            "text(all('[aria-labelledby=namespaces] tbody tr').find((it) => text(it).startsWith('{namespace}')).querySelector('.chip'))"
        );
        browser.until(&format!("{row} === '{state}'")).await;
    }
}

#[tokio::test]
async fn the_list_is_filtered_and_paged_by_its_address() {
    let weir = Weir::with(&PATIENT).await;
    every_state(&weir).await;
    let browser = Browser::open(&weir.coordinator.url()).await;
    let sources = "all('[aria-labelledby=sources] tbody a').map(text).join(' ')";
    browser
        .until(&format!(
            "{sources}.startsWith('default/blank default/catalogue')"
        ))
        .await;
    browser
        .write(
            "document.querySelector('[aria-labelledby=sources] label:nth-of-type(2) input')",
            "re",
        )
        .await;
    browser
        .until(&format!("{sources} === 'shop/returns shop/reviews'"))
        .await;
    browser.reload().await;
    browser
        .until(&format!("{sources} === 'shop/returns shop/reviews'"))
        .await;
    browser
        .goto(&format!("{}/#/", weir.coordinator.url()))
        .await;
    browser
        .click("document.querySelector('input[type=checkbox]')")
        .await;
    let unsettled = "default/logistics shop/products shop/returns shop/reviews wiki/pages";
    browser.until(&format!("{sources} === '{unsettled}'")).await;
    browser.click("link('wiki')").await;
    browser.until(&format!("{sources} === 'wiki/pages'")).await;

    for at in 0..51 {
        put(&weir, "many", &format!("s-{at:02}"), 0).await;
    }
    browser
        .goto(&format!("{}/#/?namespace=many", weir.coordinator.url()))
        .await;
    browser.click("link('Next page')").await;
    browser.until(&format!("{sources} === 'many/s-50'")).await;
    browser.reload().await;
    browser.until(&format!("{sources} === 'many/s-50'")).await;
    browser.click("link('Previous page')").await;
    browser
        .until(&format!("{sources}.startsWith('many/s-00 ')"))
        .await;
}
