//! What pages of others have a browser do to a coordinator that asks nobody who
//! they are. What came of it is read from the database: of most of it a page
//! sees nothing.

use axum::{Router, response::Html, routing::get};
use prost::Message;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use weir_proto::v1::{FailJobRequest, Lease};
use weir_tests::clients::{Weir, claim_request};

use crate::browser::Browser;

const CLAIM: &str = "/weir.v1.WorkerService/ClaimJob";
const FAIL: &str = "/weir.v1.WorkerService/FailJob";

/// Leads these names to this machine.
const LED_HERE: &str =
    "--host-resolver-rules=MAP rebind.example 127.0.0.1,MAP evil.example 127.0.0.1";

/// Calls a page makes, with `base` before their path: what each was answered, as
/// far as the page may know.
const CALLS: &str = "
    const answered = (call) => call.then(async (it) => [it.status, await it.text()], (it) => [0, String(it)]);
    const post = (path, body, kind, mode) => answered(fetch(base + path, {
        method: 'POST', mode, body: new Blob([body], { type: kind }), signal: AbortSignal.timeout(20000),
    }));
    const framed = (message) => Uint8Array.from([0, 0, 0, 0, message.length, ...message]);
    const watched = () => new Promise((done) => {
        const events = new EventSource(base + '/api/JobService/WatchSource?request=' + encodeURIComponent('{\"name\":\"pages\"}'));
        events.onmessage = (it) => { events.close(); done(it.data); };
        events.onerror = () => { events.close(); done('an error'); };
    });
    const deletion = '{\"name\":\"pages\"}';
    const remove = '/api/SourceService/DeleteSource';
";

/// A message as a script has it.
fn bytes(message: &impl Message) -> Value {
    json!(message.encode_to_vec())
}

fn failure(lease: &Lease) -> FailJobRequest {
    FailJobRequest {
        job_id: lease.job_id,
        epoch: lease.epoch,
        reason: "a page says so".to_owned(),
    }
}

/// Where the one job there is stands.
async fn job(weir: &Weir) -> (String, i64, i64) {
    sqlx::query_as("SELECT state::text, epoch::bigint, attempt::bigint FROM weir.jobs")
        .fetch_one(weir.database.pool())
        .await
        .unwrap()
}

/// Serves a page with a link, and returns its port.
async fn serve(link: &str) -> u16 {
    let page = Html(format!(
        "<!doctype html><title>A page</title><a href='{link}'>Weir</a>"
    ));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let pages = Router::new().route("/", get(async || page));
    tokio::spawn(async { axum::serve(listener, pages).await });
    port
}

/// Has a page make calls; `calls` is a list of them in a script.
async fn call(browser: &Browser, base: &str, calls: &str) -> Value {
    let base = json!(base);
    let script = format!("const base = {base}; {CALLS} return Promise.all([{calls}])");
    browser.run(&script).await
}

/// With which status the stream was answered.
async fn status_of_stream(browser: &Browser) -> Value {
    let log = browser.log("performance").await;
    let mut requests = log.iter().filter(|it| {
        let url = it["params"]["request"]["url"].as_str().unwrap_or_default();
        it["method"] == "Network.requestWillBeSent" && url.contains("/Watch")
    });
    let id = &requests.next().expect("a stream was asked for")["params"]["requestId"];
    let of_it = |it: &&Value| {
        it["method"] == "Network.responseReceivedExtraInfo" && it["params"]["requestId"] == *id
    };
    let answer = log.iter().find(of_it).expect("it was answered");
    answer["params"]["statusCode"].clone()
}

#[tokio::test]
async fn a_page_of_another_origin_takes_fails_and_deletes_nothing_and_may_link_to_the_dashboard() {
    let weir = Weir::start().await;
    weir.put("pages", &["the text"]).await;
    let url = weir.coordinator.url();
    let port = serve(&url).await;
    let browser = Browser::open_with(&[LED_HERE], &format!("http://127.0.0.1:{port}")).await;
    let claims = format!(
        "...['', 'text/plain', 'application/x-www-form-urlencoded', 'application/grpc'].map(
            (kind) => post('{CLAIM}', framed({}), kind, 'no-cors')), watched(), answered(fetch(base + '/', {{ mode: 'no-cors' }}))",
        bytes(&claim_request()),
    );
    for page in ["127.0.0.1", "evil.example"] {
        browser.goto(&format!("http://{page}:{port}")).await;
        browser.log("performance").await;
        let seen = call(&browser, &url, &claims).await;
        assert_eq!(
            seen[0],
            json!([0, ""]),
            "{page}: it was answered, and is opaque"
        );
        assert_eq!(job(&weir).await.0, "queued", "{page}");
        assert_eq!(status_of_stream(&browser).await, 403, "{page}");
    }

    let lease = weir.claim().await;
    let claimed = job(&weir).await;
    let rest = format!(
        "post('{FAIL}', framed({}), 'text/plain', 'no-cors'), post('{FAIL}', framed({0}), '', 'no-cors'),
         post(remove, deletion, 'text/plain', 'no-cors'), post(remove, deletion, 'application/json', 'no-cors'),
         post(remove, deletion, 'application/json', 'cors'),
         navigator.sendBeacon(base + '{FAIL}', new Blob([framed({0})], {{ type: 'text/plain' }}))",
        bytes(&failure(&lease)),
    );
    for page in ["127.0.0.1", "evil.example"] {
        browser.goto(&format!("http://{page}:{port}")).await;
        call(&browser, &url, &rest).await;
        assert_eq!(job(&weir).await, claimed, "{page}");
        assert_eq!(weir.rows("sources").await, 1, "{page}");
    }

    browser.click("link('Weir')").await;
    browser
        .until("badge('default/pages')?.startsWith('indexing') && connection() === 'live'")
        .await;
}

#[tokio::test]
async fn a_name_that_is_led_to_the_coordinator_reads_and_writes_nothing() {
    let weir = Weir::start().await;
    weir.put("pages", &["the text"]).await;
    let base = format!(
        "http://rebind.example:{}",
        weir.coordinator.address().port()
    );
    // Open to every name, and a page of that name as good as any.
    let browser = Browser::open_with(&[LED_HERE], &format!("{base}/livez")).await;
    assert_eq!(browser.is("location.origin").await, json!(base));
    let calls = format!(
        "answered(fetch(base + '/')), answered(fetch(base + '/metrics')),
         post('/api/SourceService/ListChunks', deletion, 'application/json', 'cors'), watched(),
         post('{CLAIM}', framed({}), 'application/grpc', 'cors'),
         post('{CLAIM}', framed({0}), 'text/plain', 'cors')",
        bytes(&claim_request()),
    );
    let seen = call(&browser, &base, &calls).await;
    assert_eq!(job(&weir).await.0, "queued", "{seen}");
    for at in [0, 1, 2, 5] {
        assert_eq!(seen[at][0], 421, "{at}: {seen}");
    }
    assert_eq!(seen[3], "an error", "{seen}");
    let claimed = weir.claim().await;
    let stands = job(&weir).await;
    let calls = format!(
        "post('{FAIL}', framed({}), 'application/grpc', 'cors'), post(remove, deletion, 'application/json', 'cors')",
        bytes(&failure(&claimed)),
    );
    call(&browser, &base, &calls).await;
    assert_eq!(job(&weir).await, stands);
    assert_eq!(weir.rows("sources").await, 1);
    // Whoever came by that name in earnest is told what to do.
    browser.goto(&base).await;
    browser
        .until("text(document.body).includes('--allowed-hosts (WEIR_ALLOWED_HOSTS)')")
        .await;
}

#[tokio::test]
async fn the_dashboard_works_by_each_name_of_this_machine_and_by_one_that_is_allowed() {
    let weir = Weir::with(&[("WEIR_ALLOWED_HOSTS", "rebind.example")]).await;
    weir.put("pages", &["the text"]).await;
    let port = weir.coordinator.address().port();
    let browser = Browser::open_with(&[LED_HERE], &weir.coordinator.url()).await;
    for host in ["127.0.0.1", "localhost", "rebind.example"] {
        browser
            .goto(&format!("http://{host}:{port}/#/sources/default/pages"))
            .await;
        browser.click("button('Cancel job')").await;
        browser.click("button('Cancel the job')").await;
        browser.until("text(document.querySelector('.badge')) === 'not indexed' && connection() === 'live'").await;
        browser.click("button('Retry job')").await;
        browser
            .until("text(document.querySelector('.badge')) === 'queued'")
            .await;
    }
}
