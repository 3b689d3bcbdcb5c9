//! Without a mouse: by keyboard, and by touch.

use fantoccini::key::Key;
use serde_json::json;
use weir_tests::clients::Weir;

use crate::{
    browser::Browser,
    scene::{PATIENT, every_state},
};

/// Goes on with the tabulator until the focus is on what begins like this.
async fn tab_to(browser: &Browser, label: &str) {
    let mut passed = Vec::new();
    while !browser.focus().await.starts_with(label) {
        assert!(passed.len() < 100, "{label} is not among {passed:?}");
        browser.press(Key::Tab).await;
        passed.push(browser.focus().await);
    }
}

#[tokio::test]
async fn all_is_reached_by_keyboard() {
    let weir = Weir::with(&PATIENT).await;
    every_state(&weir).await;
    let browser = Browser::open(&weir.coordinator.url()).await;
    browser
        .until("row('shop/products') && document.querySelector('.cause')")
        .await;
    browser.press(Key::Tab).await;
    assert_eq!(browser.focus().await, "Skip to the content");
    browser.press(Key::Enter).await;
    assert_eq!(browser.focus().await, "Overview");

    // The tip of a badge comes with the focus and goes with Escape.
    tab_to(&browser, "retrying").await;
    browser.until("tip().includes('connection refused')").await;
    let described =
        "document.getElementById(document.activeElement.getAttribute('aria-describedby'))";
    browser
        .until(&format!("text({described}).includes('connection refused')"))
        .await;
    let outline = "getComputedStyle(document.activeElement).outlineStyle";
    assert_eq!(
        browser.is(outline).await,
        "solid",
        "the focus is to be seen"
    );
    browser.press(Key::Escape).await;
    browser
        .until("!document.querySelector('.tip:popover-open')")
        .await;

    // A source is opened, and a job of it cancelled, but for second thoughts.
    let products = "link('shop/products').focus()";
    browser.run(products).await;
    browser.press(Key::Enter).await;
    browser
        .until("title() === 'products' && document.activeElement.id === 'title'")
        .await;
    tab_to(&browser, "Cancel job").await;
    browser.press(Key::Enter).await;
    browser.until("document.querySelector('dialog').open").await;
    assert_eq!(browser.focus().await, "Leave it");
    browser.press(Key::Escape).await;
    browser.until("!document.querySelector('dialog')").await;
    assert!(
        browser.focus().await.starts_with("Cancel job"),
        "the focus is back"
    );
    browser.press(Key::Enter).await;
    browser.until("document.querySelector('dialog').open").await;
    tab_to(&browser, "Cancel the job").await;
    browser.press(Key::Enter).await;
    browser.until("notices().includes('done')").await;
    browser.until("row('cancelled')").await;
}

#[tokio::test]
async fn a_phone_shows_all_and_a_tap_tells_why() {
    let weir = Weir::with(&PATIENT).await;
    every_state(&weir).await;
    let url = weir.coordinator.url();
    let browser = Browser::open(&url).await;
    browser.resize((390, 844), true).await;
    browser.until("row('shop/products')").await;
    let at = browser
        .run(
            "const badge = row('shop/products').querySelector('.badge');
             badge.scrollIntoView({ block: 'center' });
             const at = badge.getBoundingClientRect();
             return [at.x + at.width / 2, at.y + at.height / 2]",
        )
        .await;
    let touch = json!({ "type": "touchStart", "touchPoints": [{ "x": at[0], "y": at[1] }] });
    browser.devtools("Input.dispatchTouchEvent", touch).await;
    browser
        .devtools(
            "Input.dispatchTouchEvent",
            json!({ "type": "touchEnd", "touchPoints": [] }),
        )
        .await;
    browser.until("tip().includes('connection refused')").await;
    let tip = browser.is("(({ left, right }) => [left, right])(document.querySelector('.tip:popover-open').getBoundingClientRect())").await;
    assert!(
        tip[0].as_f64() >= Some(0.0) && tip[1].as_f64() <= Some(390.0),
        "{tip}"
    );
    for page in ["#/", "#/failures", "#/sources/shop/products"] {
        browser.goto(&format!("{url}/{page}")).await;
        browser.until("row('Retry')").await;
        let width = browser.is("document.documentElement.scrollWidth").await;
        assert!(width.as_u64() <= Some(390), "{page} is {width} wide");
    }
}
