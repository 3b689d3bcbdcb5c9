//! Pictures of every page, into `target/screenshots`, for who wants to look.

use std::fs;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use weir_tests::clients::Weir;

use crate::{
    browser::{Browser, target},
    scene::{PATIENT, an_hour, every_state},
};

#[tokio::test]
async fn every_page_has_its_picture() {
    let weir = Weir::with(&PATIENT).await;
    every_state(&weir).await;
    an_hour(&weir).await;
    let url = weir.coordinator.url();
    let folder = target().join("screenshots");
    fs::create_dir_all(&folder).unwrap();
    let browser = Browser::open(&url).await;
    let hidden = json!({ "hidden": true });
    browser
        .devtools("Emulation.setScrollbarsHidden", hidden)
        .await;
    for (name, size, scheme) in [
        ("light", (1280, 900), "light"),
        ("dark", (1280, 900), "dark"),
        ("phone", (390, 844), "light"),
    ] {
        browser.resize(size, name == "phone").await;
        browser.prefer(scheme).await;
        for (page, address, there) in [
            (
                "overview",
                "#/",
                "document.querySelector('.plot .line') && document.querySelector('.cause') && row('wiki/pages')",
            ),
            ("source", "#/sources/shop/products", "row('queued')"),
            (
                "rejected",
                "#/sources/default/handbook",
                "row('item-') && row('succeeded')",
            ),
            (
                "failures",
                "#/failures",
                "title() === 'Failures' && document.querySelector('.cause')",
            ),
        ] {
            browser.goto("about:blank").await;
            browser.goto(&format!("{url}/{address}")).await;
            browser.until(there).await;
            if page != "overview" && page != "rejected" {
                let opened = "all('main tbody a')[0]";
                browser.click(opened).await;
                browser
                    .until("document.querySelector('.under tbody tr')")
                    .await;
            }
            browser
                .run("document.activeElement.blur(); scrollTo(0, 0)")
                .await;
            let wanted = json!({ "format": "png", "captureBeyondViewport": true });
            let shot = browser.devtools("Page.captureScreenshot", wanted).await;
            let image = STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
            assert!(image.len() > 10_000, "{name}-{page} is blank");
            fs::write(folder.join(format!("{page}-{name}.png")), image).unwrap();
        }
    }
}
