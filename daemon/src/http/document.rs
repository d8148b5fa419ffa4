//! The OpenAPI document, made from the handlers and types themselves.

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use utoipa::OpenApi;

/// All operations; a test compares them with the router.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "smcd control API",
        description = "Jobs that migrate this machine's disks. On a Unix socket, for root. Names of fields end in their \
                       unit; times are RFC 3339 in UTC; every answer that is no success is an ErrorBody."
    ),
    paths(
        super::machine::status,
        super::machine::disks,
        super::machine::precheck,
        super::machine::estimate,
        super::machine::exports,
        super::jobs::list,
        super::jobs::create,
        super::jobs::show,
        super::jobs::modify,
        super::jobs::delete,
        super::jobs::start,
        super::jobs::sync,
        super::jobs::stop,
        super::jobs::cancel,
        super::jobs::complete,
        super::jobs::runs,
        super::metrics::serve,
    )
)]
struct Document;

/// The document as JSON.
pub fn openapi_json() -> String {
    // It is made of constants: what could fail is found by the test below.
    Document::openapi().to_pretty_json().unwrap_or_default()
}

/// Serves the document.
pub async fn serve() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], openapi_json())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_there_with_its_schemas() {
        let document: serde_json::Value = serde_json::from_str(&openapi_json()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let count: usize = paths.values().map(|path| path.as_object().unwrap().len()).sum();
        assert_eq!(count, 17, "{:?}", paths.keys());
        for name in [
            "JobView",
            "CreateJob",
            "ErrorBody",
            "Precheck",
            "Estimate",
            "Forecast",
        ] {
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
        let text = openapi_json();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name} is referred to and not there");
        }
    }
}
