//! A coordinator that asks for a token, in TLS.

use serde_json::Value;
use weir_tests::{
    certificates::{Authority, text_of},
    clients::Weir,
    cluster::Coordinator,
    tokens::Tokens,
};

use crate::{
    browser::Browser,
    scene::{PATIENT, put},
};

const FIELD: &str = "document.querySelector('input[name=token]')";

/// Waits until the page asks for a token in these words, and gives it one.
async fn answer(browser: &Browser, asks: &str, token: &str) {
    browser
        .until(&format!(
            "text(document.querySelector('dialog')).includes('{asks}')"
        ))
        .await;
    browser.write(FIELD, token).await;
    browser.click("button('Go on')").await;
}

#[tokio::test]
async fn a_token_is_asked_for_kept_for_the_tab_and_says_what_may_be_done() {
    // One replica is open, for the test; the browser's is guarded.
    let weir = Weir::with(&PATIENT).await;
    put(&weir, "default", "pages", 3).await;
    put(&weir, "shop", "products", 3).await;
    let (authority, tokens) = (Authority::new(), Tokens::new());
    let own = authority.issue("coordinator");
    let whole = tokens.add("operator", "client", &["*"]);
    let shop = tokens.add("shop", "client", &["shop"]);
    let worker = tokens.add("embedding", "worker", &["*"]);
    let file = tokens.path();
    let guarded = Coordinator::spawn(
        weir.database.url(),
        &[
            ("WEIR_TLS_CERT", text_of(&own.cert)),
            ("WEIR_TLS_KEY", text_of(&own.key)),
            ("WEIR_TOKENS_FILE", text_of(&file)),
        ],
    )
    .await;
    let url = guarded.tls_url();

    let browser = Browser::open(&url).await;
    answer(&browser, "asks for a token", "wrong").await;
    answer(&browser, "did not take the token", &worker).await;
    // That of a worker is known, and of no use here.
    browser
        .until("all('[role=alert]').map(text).join().includes('a token of a worker')")
        .await;
    assert_eq!(
        browser.is("document.querySelector('.badge')").await,
        Value::Null
    );
    browser.click("button('Other token')").await;
    answer(&browser, "asks for a token", &whole).await;
    browser.until("badge('default/pages') === 'queued'").await;
    browser.reload().await;
    browser
        .until("badge('default/pages') === 'queued' && !document.querySelector('dialog')")
        .await;
    assert_eq!(
        browser
            .is("localStorage.length + document.cookie.length")
            .await,
        0
    );

    // What the token may not do is told, and not done.
    browser
        .goto(&format!("{url}/#/sources/default/pages"))
        .await;
    browser.until("button('Cancel job')").await;
    let stored = serde_json::json!(shop);
    browser
        .run(&format!("sessionStorage.setItem('weir-token', {stored})"))
        .await;
    browser.click("button('Delete')").await;
    browser.click("button('Delete the source')").await;
    browser
        .until("notices().includes('may not use the namespace')")
        .await;
    assert_eq!(weir.rows("sources").await, 2);
    browser.reload().await;
    browser
        .until("all('[role=alert]').map(text).join().includes('may not use the namespace')")
        .await;
    browser.click("link('Overview')").await;
    browser
        .until("badge('shop/products') === 'queued' && !row('default/pages')")
        .await;

    // One that is taken back meanwhile ends what it had opened.
    tokens.write("tokens.toml", "");
    let other = tokens.add("another", "client", &["shop"]);
    answer(&browser, "did not take the token", &other).await;
    browser.until("connection() === 'live'").await;
    put(&weir, "shop", "returns", 3).await;
    browser.until("badge('shop/returns') === 'queued'").await;
}
