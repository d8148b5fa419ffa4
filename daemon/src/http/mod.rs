//! The control API: HTTP/1.1 and JSON on a Unix socket, described by an OpenAPI document that it serves itself.
//!
//! Handlers only call the service, on threads that may wait; all rules are in the service.

mod answer;
mod connections;
mod document;
mod jobs;
mod machine;
mod metrics;
mod targets;

use crate::service::Parts;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post};
use std::sync::Arc;

pub use connections::{CONNECTIONS_MAX, Limits, serve};
pub use document::openapi_json;

/// The longest accepted request body, in bytes.
const BODY_MAX: usize = 1 << 20;

/// The state that every handler receives.
type Service = Arc<Parts>;

/// All routes.
pub fn router(service: Service) -> Router {
    let job = get(jobs::show).patch(jobs::modify).delete(jobs::delete);
    let v1 = Router::new()
        .route("/status", get(machine::status))
        .route("/openapi.json", get(document::serve))
        .route("/disks", get(machine::disks))
        .route("/precheck", get(machine::precheck))
        .route("/estimate", post(machine::estimate))
        .route("/exports", get(machine::exports))
        .route("/tracker", get(machine::tracker).delete(machine::remove_tracker))
        .route("/targets", get(targets::list).post(targets::add))
        .route("/targets/{name}", delete(targets::remove))
        .route("/targets/{name}/renew", post(targets::renew))
        .route("/jobs", get(jobs::list).post(jobs::create))
        .route("/jobs/{name}", job)
        .route("/jobs/{name}/start", post(jobs::start))
        .route("/jobs/{name}/sync", post(jobs::sync))
        .route("/jobs/{name}/confirm", post(jobs::confirm))
        .route("/jobs/{name}/stop", post(jobs::stop))
        .route("/jobs/{name}/cancel", post(jobs::cancel))
        .route("/jobs/{name}/complete", post(jobs::complete))
        .route("/jobs/{name}/runs", get(jobs::runs));
    Router::new()
        .nest(api::PREFIX, v1)
        .route("/metrics", get(metrics::serve))
        .fallback(answer::no_such_path)
        .method_not_allowed_fallback(answer::no_such_method)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(service)
}
