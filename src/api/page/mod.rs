//! The page at `/`: what the query API answers, for people. Everything it needs is inside the binary, since there may be
//! no way out of where it is opened.
//!
//! The page itself holds no data and asks for no token; its questions to the API do.

use http::{HeaderValue, Method, Request, Response, StatusCode, header};

use crate::listen::Body;

/// Only what comes from here, nothing inline: text of a span that finds its way into the page is never run.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'",
);

/// Path, type and content of each file.
const FILES: [(&str, &str, &[u8]); 12] = [
    ("/", "text/html; charset=utf-8", include_bytes!("index.html")),
    (
        "/page/app.js",
        "text/javascript; charset=utf-8",
        include_bytes!("app.js"),
    ),
    (
        "/page/charts.js",
        "text/javascript; charset=utf-8",
        include_bytes!("charts.js"),
    ),
    (
        "/page/drawer.js",
        "text/javascript; charset=utf-8",
        include_bytes!("drawer.js"),
    ),
    (
        "/page/format.js",
        "text/javascript; charset=utf-8",
        include_bytes!("format.js"),
    ),
    (
        "/page/panels.js",
        "text/javascript; charset=utf-8",
        include_bytes!("panels.js"),
    ),
    (
        "/page/query.js",
        "text/javascript; charset=utf-8",
        include_bytes!("query.js"),
    ),
    (
        "/page/style.css",
        "text/css; charset=utf-8",
        include_bytes!("style.css"),
    ),
    ("/page/icon.svg", "image/svg+xml", include_bytes!("icon.svg")),
    (
        "/page/vendor/preact.js",
        "text/javascript; charset=utf-8",
        include_bytes!("vendor/preact.js"),
    ),
    (
        "/page/vendor/uplot.js",
        "text/javascript; charset=utf-8",
        include_bytes!("vendor/uplot.js"),
    ),
    (
        "/page/vendor/uplot.css",
        "text/css; charset=utf-8",
        include_bytes!("vendor/uplot.css"),
    ),
];

/// The answer to a request for the page or one of its files.
pub fn answer<B>(request: &Request<B>) -> Response<Body> {
    let path = request.uri().path();
    let Some((_, kind, content)) = FILES.iter().find(|(known, _, _)| *known == path) else {
        return plain(
            StatusCode::NOT_FOUND,
            "there is no such page; the query API is under /api/v1/\n",
        );
    };
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
    }
    let body = if request.method() == Method::HEAD {
        Body::empty()
    } else {
        Body::from(bytes::Bytes::from_static(content))
    };
    with_headers(Response::new(body), kind)
}

fn plain(status: StatusCode, message: &'static str) -> Response<Body> {
    let mut response = with_headers(Response::new(Body::from(message)), "text/plain; charset=utf-8");
    *response.status_mut() = status;
    response
}

fn with_headers(mut response: Response<Body>, kind: &'static str) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    // The next version of the program has another page.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_the_page_loads_is_here_and_nothing_comes_from_elsewhere() {
        let mut loaded = 0;
        for (name, _, content) in FILES.iter().filter(|(name, _, _)| !name.contains("vendor")) {
            let text = std::str::from_utf8(content).unwrap();
            for part in text.split(['"', '\'']).filter(|part| part.starts_with("/page/")) {
                loaded += 1;
                let request = Request::get(part).body(()).unwrap();
                assert_eq!(answer(&request).status(), StatusCode::OK, "{name} loads {part}");
            }
            let without_namespace = text.replace("http://www.w3.org/2000/svg", "");
            assert!(
                !without_namespace.contains("http://") && !without_namespace.contains("https://"),
                "{name}"
            );
        }
        assert!(loaded >= 6);
        let page = std::str::from_utf8(FILES[0].2).unwrap();
        assert!(
            !page.contains("<style") && !page.contains("style="),
            "inline styles are not allowed by the policy"
        );
    }

    #[test]
    fn every_answer_carries_the_policy() {
        for (path, status) in [
            ("/", StatusCode::OK),
            ("/page/app.js", StatusCode::OK),
            ("/x", StatusCode::NOT_FOUND),
        ] {
            let response = answer(&Request::get(path).body(()).unwrap());
            assert_eq!(response.status(), status);
            assert!(response.headers().contains_key(header::CONTENT_SECURITY_POLICY));
        }
        let post = answer(&Request::post("/").body(()).unwrap());
        assert_eq!(post.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
