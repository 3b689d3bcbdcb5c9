//! The page for operators, at `/`. It is made of files that are compiled in,
//! and reads and does all that it shows by the JSON calls below `/api`.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use sha2::{Digest as _, Sha256};

/// What the page may load, and from where: its own files and calls, and
/// nothing from anywhere else. What a source or an error is called can become
/// no script, for there are none but in these files, and text can become no
/// markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// A file with its place on the port.
struct File {
    path: &'static str,
    kind: &'static str,
    content: &'static str,
}

macro_rules! file {
    ($name:literal, $kind:expr) => {
        file!(concat!("/dashboard/", $name), $name, $kind)
    };
    ($path:expr, $name:literal, $kind:expr) => {
        File {
            path: $path,
            kind: $kind,
            content: include_str!(concat!("dashboard/", $name)),
        }
    };
}

const FILES: &[File] = &[
    file!("/", "index.html", HTML),
    file!("icon.svg", SVG),
    file!("theme.css", CSS),
    file!("page.css", CSS),
    file!("page.js", SCRIPT),
    file!("route.js", SCRIPT),
    file!("state.js", SCRIPT),
    file!("api.js", SCRIPT),
    file!("token.js", SCRIPT),
    file!("html.js", SCRIPT),
    file!("format.js", SCRIPT),
    file!("parts.js", SCRIPT),
    file!("plots.js", SCRIPT),
    file!("actions.js", SCRIPT),
    file!("overview.js", SCRIPT),
    file!("failures.js", SCRIPT),
    file!("source.js", SCRIPT),
    file!("attempts.js", SCRIPT),
    file!("chunks.js", SCRIPT),
    file!("vendor/htm.js", SCRIPT),
    file!("vendor/preact.js", SCRIPT),
];

/// A file, and the mark by which a browser knows that it has it already.
struct Page {
    file: &'static File,
    etag: HeaderValue,
}

/// The page with all that belongs to it.
pub(super) fn router() -> Router {
    FILES.iter().fold(Router::new(), |router, file| {
        router.route(file.path, get(show).with_state(Arc::new(Page::of(file))))
    })
}

impl Page {
    fn of(file: &'static File) -> Self {
        let hash = Sha256::digest(file.content);
        let hash = hash.iter().take(16).map(|byte| format!("{byte:02x}"));
        let etag = format!("\"{}\"", hash.collect::<String>());
        // Hex digits are always a header; without one a browser asks each time.
        let etag = HeaderValue::try_from(etag).unwrap_or(HeaderValue::from_static("\"\""));
        Self { file, etag }
    }
}

async fn show(State(page): State<Arc<Page>>, headers: HeaderMap) -> Response {
    let common = [
        (header::ETAG, page.etag.clone()),
        // Asked for each time, and sent only when it is another: a new version shows at once.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static(POLICY),
        ),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        (
            header::REFERRER_POLICY,
            HeaderValue::from_static("no-referrer"),
        ),
    ];
    if has_it(&headers, &page.etag) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    let kind = [(header::CONTENT_TYPE, page.file.kind)];
    (common, kind, page.file.content).into_response()
}

/// Whether the client has this version.
/// <https://www.rfc-editor.org/rfc/rfc9110#section-13.1.2>
fn has_it(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let known = headers.get_all(header::IF_NONE_MATCH);
    let known = known.iter().filter_map(|value| value.to_str().ok());
    known
        .flat_map(|value| value.split(','))
        .map(|tag| tag.trim().trim_start_matches("W/"))
        .any(|tag| tag.as_bytes() == etag.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use axum::{body::Body, http::Request};
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(path: &str, known: Option<&str>) -> Response {
        let mut request = Request::get(path);
        if let Some(known) = known {
            request = request.header(header::IF_NONE_MATCH, known);
        }
        let request = request.body(Body::empty()).unwrap();
        router().oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn a_file_is_sent_with_its_type_and_only_to_who_has_it_not() {
        let page = ask("/", None).await;
        assert_eq!(page.status(), StatusCode::OK);
        assert_eq!(page.headers()[header::CONTENT_TYPE], HTML);
        assert_eq!(page.headers()[header::CONTENT_SECURITY_POLICY], POLICY);
        let etag = page.headers()[header::ETAG].to_str().unwrap();
        for known in [etag, &format!("\"x\", W/{etag}")] {
            let again = ask("/", Some(known)).await;
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{known}");
        }
        let other = ask("/dashboard/page.js", Some(etag)).await;
        assert_eq!(other.status(), StatusCode::OK);
        assert_eq!(other.headers()[header::CONTENT_TYPE], SCRIPT);
        assert_eq!(
            ask("/dashboard/none.js", None).await.status(),
            StatusCode::NOT_FOUND
        );
    }

    #[test]
    fn every_file_that_is_there_is_served() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/dashboard"));
        for at in [folder.to_owned(), folder.join("vendor")] {
            for entry in fs::read_dir(at).unwrap() {
                let path = entry.unwrap().path();
                let about = path
                    .extension()
                    .is_none_or(|it| it == "md" || it == "LICENSE");
                if path.is_dir() || about {
                    continue;
                }
                let content = fs::read_to_string(&path).unwrap();
                let served = FILES.iter().any(|file| file.content == content);
                assert!(served, "{} is missing in FILES", path.display());
            }
        }
    }
}
