//! A coordinator that asks for a token: one is put before it here that does,
//! as a gateway may.

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use tokio::net::TcpListener;
use weir_tests::clients::{Weir, http};

use crate::{
    browser::Browser,
    scene::{PATIENT, put},
};

const TOKEN: &str = "Bearer open-sesame";

/// Lets pages through, and calls with the token.
async fn gate(State(to): State<String>, request: Request) -> Response {
    let known = request.headers().get(header::AUTHORIZATION);
    let allowed = known.is_some_and(|known| known == TOKEN);
    if request.uri().path().starts_with("/api/") && !allowed {
        let refusal =
            r#"{"code":"UNAUTHENTICATED","message":"this call needs a token","violations":[]}"#;
        return (StatusCode::UNAUTHORIZED, refusal).into_response();
    }
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let answer = http()
        .request(parts.method, format!("{to}{}", parts.uri))
        .headers(parts.headers)
        .body(body)
        .send()
        .await
        .unwrap();
    axum::http::Response::from(answer).map(Body::new)
}

#[tokio::test]
async fn a_token_is_asked_for_and_kept_for_the_tab() {
    let weir = Weir::with(&PATIENT).await;
    put(&weir, "default", "pages", 3).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new()
        .fallback(gate)
        .with_state(weir.coordinator.url());
    let gate = tokio::spawn(async move { axum::serve(listener, app).await });

    let browser = Browser::open(&url).await;
    browser
        .until("text(document.querySelector('dialog')).includes('asks for a token')")
        .await;
    let field = "document.querySelector('input[name=token]')";
    browser.write(field, "wrong\u{e007}").await;
    browser
        .until("text(document.querySelector('dialog')).includes('did not take the token')")
        .await;
    assert_eq!(
        browser.is("document.querySelector('.badge')").await,
        serde_json::Value::Null
    );
    browser.write(field, "open-sesame").await;
    browser.click("button('Go on')").await;
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
    gate.abort();
}
