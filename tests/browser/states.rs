//! Every badge and every verdict, in the same words on the page and on the
//! command line.

use serde_json::{Value, json};
use tokio::process::Command;
use weir_proto::v1::{GetStatusRequest, Verdict};
use weir_tests::{clients::Weir, cluster::binary};

use crate::{
    browser::Browser,
    scene::{PATIENT, complete, embed, every_state, put},
};

async fn verdict(weir: &Weir) -> (Verdict, Vec<String>) {
    let status = weir.jobs().get_status(GetStatusRequest::default()).await;
    let total = status.unwrap().into_inner().total.unwrap();
    (total.verdict(), total.reasons)
}

/// What the command line says.
async fn told(weir: &Weir, args: &[&str]) -> String {
    let command = Command::new(binary("weir"))
        .args(args)
        .env("WEIR_COORDINATOR", weir.coordinator.url())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8(command.stdout).unwrap();
    assert!(!said.is_empty(), "{args:?}: {:?}", command.stderr);
    said
}

/// Waits until the page and the command line have the coordinator's verdict, and returns it.
async fn shown_verdict(weir: &Weir, browser: &Browser) -> Verdict {
    let (verdict, reasons) = verdict(weir).await;
    let word = verdict.as_str_name().trim_start_matches("VERDICT_");
    let shown = json!(word.to_lowercase());
    let reasons_told = reasons.join(", ");
    let reasons = Value::from(reasons);
    let same =
        format!("verdict() === {shown} && JSON.stringify(reasons()) === JSON.stringify({reasons})");
    browser.until(&same).await;
    let status = told(weir, &["status", "--all-namespaces"]).await;
    let headline = [vec![word.to_lowercase()], vec![reasons_told]].concat();
    let headline: Vec<_> = headline.into_iter().filter(|it| !it.is_empty()).collect();
    assert_eq!(status.lines().next(), Some(headline.join(": ").as_str()));
    verdict
}

#[tokio::test]
async fn the_page_and_the_command_line_say_the_same_of_every_state() {
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

    // Each with its own words, everywhere.
    let stopped = "the embedder answered 500: model runner has unexpectedly stopped";
    let refused = "connection refused (os error 111)";
    let badges = [
        ("default", "blank", "empty", None),
        ("default", "catalogue", "120/120 indexed", None),
        (
            "default",
            "handbook",
            "83/84 indexed, 1 rejected",
            Some((
                "1 of 84 chunks rejected",
                "the input is longer than the context",
            )),
        ),
        ("default", "logistics", "indexing 77/201", None),
        (
            "shop",
            "products",
            "retrying (2 tries)",
            Some((refused, "next run in")),
        ),
        ("shop", "returns", "queued", None),
        (
            "shop",
            "reviews",
            "failed",
            Some((stopped, "queued again in")),
        ),
        (
            "wiki",
            "pages",
            "not indexed",
            Some(("cancelled by a client", "")),
        ),
    ];
    let list = told(&weir, &["ls", "--all-namespaces"]).await;
    for (namespace, name, text, trouble) in badges {
        let source = format!("{namespace}/{name}");
        let shown = format!("badge({}) === {}", json!(source), json!(text));
        browser.until(&shown).await;
        let line = list.lines().find(|line| line.starts_with(&source)).unwrap();
        assert!(line.contains(text), "{text} is not in {line}");
        let one = told(&weir, &["get", name, "--namespace", namespace]).await;
        assert!(one.contains(&format!("status    {text}")), "{one}");
        let Some((error, next)) = trouble else {
            continue;
        };
        let badge = format!("row({}).querySelector('.badge')", json!(source));
        browser.run(&format!("{badge}.focus()")).await;
        let (has_error, has_next) = (json!(error), json!(next));
        browser
            .until(&format!(
                "tip().includes({has_error}) && tip().includes({has_next})"
            ))
            .await;
        assert!(one.contains(error) && one.contains(next), "{one}");
    }

    // And why, by cause.
    let failures = told(&weir, &["failures", "--all-namespaces"]).await;
    browser
        .until("document.querySelectorAll('.cause').length === 2")
        .await;
    for cause in browser
        .is("all('.cause').map(text)")
        .await
        .as_array()
        .unwrap()
    {
        assert!(failures.contains(cause.as_str().unwrap()), "{failures}");
    }

    for (namespace, state) in [
        ("default", "degraded"),
        ("shop", "degraded"),
        ("wiki", "degraded"),
    ] {
        let row = format!(
            "text(all('[aria-labelledby=namespaces] tbody tr').find((it) => text(it).startsWith('{namespace}')).querySelector('.chip'))"
        );
        browser.until(&format!("{row} === '{state}'")).await;
        let status = told(&weir, &["status", "--namespace", namespace]).await;
        assert!(status.starts_with(state), "{status}");
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
