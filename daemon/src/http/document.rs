//! The OpenAPI document, made from the handlers and types themselves.

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use utoipa::OpenApi;

/// All operations; a test compares them with the router.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "smcd control API",
        description = "Controls the jobs that migrate this machine's disks. The API is served on a Unix socket that \
                       only root can open. Field names end in their unit. Times are RFC 3339 in UTC. Every answer \
                       that reports an error has an ErrorBody."
    ),
    paths(
        super::machine::status,
        super::machine::disks,
        super::machine::precheck,
        super::machine::estimate,
        super::machine::exports,
        super::machine::tracker,
        super::machine::remove_tracker,
        super::targets::list,
        super::targets::add,
        super::targets::renew,
        super::targets::remove,
        super::jobs::list,
        super::jobs::create,
        super::jobs::show,
        super::jobs::modify,
        super::jobs::delete,
        super::jobs::start,
        super::jobs::sync,
        super::jobs::confirm,
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
    // The document is made of constants: the test below finds what could fail.
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
        assert_eq!(count, 24, "{:?}", paths.keys());
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
            assert!(schemas.contains_key(name), "{name} is referenced but missing");
        }
    }

    /// The document is what users of the API read, so a word such as "Its name." is not enough.
    #[test]
    fn every_operation_parameter_and_field_is_described_by_a_sentence() {
        let document: serde_json::Value = serde_json::from_str(&openapi_json()).unwrap();
        let mut texts = Vec::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                texts.push((format!("{method} {path}"), operation["summary"].as_str()));
                for parameter in operation["parameters"].as_array().into_iter().flatten() {
                    let name = format!("{method} {path}: {}", parameter["name"]);
                    texts.push((name, parameter["description"].as_str()));
                }
            }
        }
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            texts.push((name.clone(), schema["description"].as_str()));
            for (field, property) in schema["properties"].as_object().into_iter().flatten() {
                texts.push((format!("{name}.{field}"), description(property)));
            }
        }
        for (what, text) in texts {
            let text = text.unwrap_or_default();
            let is_sentence = text.split_whitespace().count() > 2 && text.ends_with('.');
            assert!(is_sentence, "{what} is described by {text:?}");
        }
    }

    /// That of a property, which has it beside or inside what it refers to.
    fn description(property: &serde_json::Value) -> Option<&str> {
        let inner = ["oneOf", "allOf", "anyOf"]
            .iter()
            .filter_map(|key| property[key].as_array())
            .flatten();
        let mut candidates = std::iter::once(property).chain(inner);
        candidates.find_map(|value| value["description"].as_str())
    }
}
