//! Requests of the control API.

use anyhow::Context;
use api::PREFIX;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, http};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// How long most answers may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long those may take that look at every disk.
const LONG_PATIENCE: Duration = Duration::from_secs(600);

/// What stands for itself in a URI, in any place (RFC 3986, unreserved characters).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    method: Method,
    /// Path and query below the API's prefix.
    target: String,
    body: Option<String>,
    patience: Duration,
}

impl Request {
    /// Asks for something; `target` is path and query below the API's prefix.
    pub fn get(target: impl Into<String>) -> Self {
        Self::new(Method::GET, target.into())
    }

    /// Asks for something to be done.
    pub fn post(target: impl Into<String>) -> Self {
        Self::new(Method::POST, target.into())
    }

    /// Asks for something to be changed.
    pub fn patch(target: impl Into<String>) -> Self {
        Self::new(Method::PATCH, target.into())
    }

    /// Asks for something to be deleted.
    pub fn delete(target: impl Into<String>) -> Self {
        Self::new(Method::DELETE, target.into())
    }

    fn new(method: Method, target: String) -> Self {
        Self {
            method,
            target,
            body: None,
            patience: PATIENCE,
        }
    }

    /// With an object as its body.
    ///
    /// # Errors
    /// A body that cannot be written as JSON.
    pub fn with(mut self, body: &impl Serialize) -> anyhow::Result<Self> {
        self.body = Some(serde_json::to_string(body)?);
        Ok(self)
    }

    /// Whose answer takes longer than most, since every disk is looked at.
    pub fn slow(self) -> Self {
        self.within(LONG_PATIENCE)
    }

    /// Whose answer may take so long.
    pub fn within(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How long its answer may take.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// As HTTP has it.
    ///
    /// # Errors
    /// A path that no request can have.
    pub fn to_http(&self) -> anyhow::Result<http::Request<Full<Bytes>>> {
        let mut request = http::Request::builder()
            .method(&self.method)
            .uri(format!("{PREFIX}{}", self.target))
            // HTTP wants one, and a Unix socket has none.
            .header(HOST, "smcd")
            .header(USER_AGENT, concat!("smcctl/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json");
        if self.body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = self.body.clone().unwrap_or_default();
        let request = request.body(Full::from(body));
        request.with_context(|| format!("{self}: say it in HTTP"))
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {PREFIX}{}", self.method, self.target)
    }
}

/// The path of a job, or of what can be asked of it (`start`).
pub fn job(name: &str, below: Option<&str>) -> String {
    let name = encoded(name);
    below.map_or_else(
        || format!("/jobs/{name}"),
        |below| format!("/jobs/{name}/{below}"),
    )
}

/// The path of a target, or of what can be asked of it (`renew`).
pub fn target(name: &str, below: Option<&str>) -> String {
    let name = encoded(name);
    below.map_or_else(
        || format!("/targets/{name}"),
        |below| format!("/targets/{name}/{below}"),
    )
}

/// A path with a query of these names and values.
pub fn with_query<'a>(path: &str, query: impl IntoIterator<Item = (&'static str, &'a str)>) -> String {
    let pairs = query
        .into_iter()
        .map(|(name, value)| format!("{name}={}", encoded(value)));
    let pairs: Vec<String> = pairs.collect();
    if pairs.is_empty() {
        return path.to_owned();
    }
    format!("{path}?{}", pairs.join("&"))
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_within_their_place() {
        assert_eq!(job("web-01.a_b~c", None), "/jobs/web-01.a_b~c");
        assert_eq!(
            job("a/b?c d\u{e9}%", Some("start")),
            "/jobs/a%2Fb%3Fc%20d%C3%A9%25/start"
        );
        assert_eq!(with_query("/x", []), "/x");
        assert_eq!(
            with_query("/x", [("store", "/a b"), ("disk", "v&a=1")]),
            "/x?store=%2Fa%20b&disk=v%26a%3D1"
        );
    }
}
