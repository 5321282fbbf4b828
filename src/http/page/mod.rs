//! `GET /`: a page about the model, its memory and its load, and a chat.
//!
//! The page is one document: browsers load nothing else, and its policy allows no script or style but these two, by their
//! digests. Everything about the model comes from other routes, with the key that the page asks for if the server has
//! keys; the document itself says nothing about the server, and so it needs no key. The page stores nothing.

use std::sync::LazyLock;

use axum::extract::State;
use axum::http::HeaderName;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::app::App;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const DOCUMENT: &str = include_str!("page.html");

/// The document with its style and script.
static PAGE: LazyLock<String> = LazyLock::new(|| {
    let page = DOCUMENT.replace("/*STYLE*/", STYLE);
    page.replace("/*SCRIPT*/", SCRIPT)
});

/// What the page may do: run this script, use this style, and ask this server. No other page may show it in a frame.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let digest = |text: &str| STANDARD.encode(Sha256::digest(text));
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'self'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
        digest(SCRIPT),
        digest(STYLE)
    )
});

/// Answers with the page.
pub async fn page(State(app): State<App>) -> Response {
    let root = &app.access().root_path;
    let page = match root.as_str() {
        "" => PAGE.clone(),
        // The links of the page are relative to this.
        root => PAGE.replacen("<head>", &format!("<head>\n<base href=\"{root}/\">"), 1),
    };
    let headers: [(HeaderName, &str); 5] = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // After an update of the program the page is the new one.
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, page).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_has_nothing_that_the_policy_forbids() {
        assert!(PAGE.len() < 60_000, "{}", PAGE.len());
        assert!(!PAGE.contains("/*STYLE*/") && !PAGE.contains("/*SCRIPT*/"));
        assert_eq!(PAGE.matches("<script>").count(), 1);
        assert_eq!(PAGE.matches("<style>").count(), 1);
        for forbidden in [
            " style=",
            " onclick=",
            "innerHTML",
            "src=",
            "http://",
            "https://",
        ] {
            let found = PAGE
                .match_indices(forbidden)
                .map(|(at, _)| &PAGE[at..at + 40]);
            // The name of SVG is no address that is loaded.
            let found: Vec<&str> = found
                .filter(|text| !text.contains("www.w3.org/2000/svg"))
                .collect();
            assert!(found.is_empty(), "{found:?}");
        }
        for store in [
            "localStorage",
            "sessionStorage",
            "indexedDB",
            "document.cookie",
        ] {
            assert!(!PAGE.contains(store), "{store}");
        }
    }
}
