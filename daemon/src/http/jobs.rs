//! Jobs and their runs.

use super::Service;
use super::answer::{Answer, Body, Failure, OptionalBody, Query, answer, on_thread};
use api::{CompleteJob, CreateJob, ErrorBody, JobView, ModifyJob, RunView};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

/// Runs told if nobody says how many.
const RUNS_DEFAULT: u32 = 50;

/// All jobs, by name.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", responses((status = 200, body = [JobView])))]
pub async fn list(State(service): State<Service>) -> Answer<Vec<JobView>> {
    answer(service, |service| Ok(service.list())).await
}

/// Makes a job.
#[utoipa::path(post, path = "/v1/jobs", tag = "jobs", request_body = CreateJob, responses(
    (status = 201, body = JobView, description = "It was made."),
    (status = 200, body = JobView, description = "The same request, known by its client token, made it before."),
    (status = 400, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn create(
    State(service): State<Service>,
    Body(request): Body<CreateJob>,
) -> Result<(StatusCode, Json<JobView>), Failure> {
    on_thread(service, move |service| {
        let (name, made) = service.create(&request)?;
        let status = if made { StatusCode::CREATED } else { StatusCode::OK };
        Ok((status, Json(service.show(&name)?)))
    })
    .await
}

/// One job, as it is now.
#[utoipa::path(get, path = "/v1/jobs/{name}", tag = "jobs", params(("name" = String, Path)), responses(
    (status = 200, body = JobView), (status = 404, body = ErrorBody)))]
pub async fn show(State(service): State<Service>, Path(name): Path<String>) -> Answer<JobView> {
    answer(service, move |service| service.show(&name)).await
}

/// Changes parameters. Either all of them are changed, or none.
#[utoipa::path(patch, path = "/v1/jobs/{name}", tag = "jobs", params(("name" = String, Path)), request_body = ModifyJob,
    responses((status = 200, body = JobView), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody)))]
pub async fn modify(
    State(service): State<Service>,
    Path(name): Path<String>,
    Body(change): Body<ModifyJob>,
) -> Answer<JobView> {
    answer(service, move |service| {
        service.modify(&name, &change)?;
        service.show(&name)
    })
    .await
}

/// How to delete.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delete {
    /// The images too.
    #[serde(default)]
    purge: bool,
}

/// Forgets a job; its images stay, unless they are to go too.
#[utoipa::path(delete, path = "/v1/jobs/{name}", tag = "jobs",
    params(("name" = String, Path), ("purge" = Option<bool>, Query, description = "Delete its images too.")),
    responses((status = 200, body = JobView, description = "Its images are being deleted, and then it is gone."),
    (status = 204, description = "It is gone."), (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn delete(
    State(service): State<Service>,
    Path(name): Path<String>,
    Query(how): Query<Delete>,
) -> Result<Response, Failure> {
    on_thread(service, move |service| {
        if service.delete(&name, how.purge)? {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        // With few images it may be gone already.
        Ok(service.show(&name).map_or_else(
            |_| StatusCode::NO_CONTENT.into_response(),
            |view| Json(view).into_response(),
        ))
    })
    .await
}

/// Begins a job, or goes on with it after a stop or an error.
#[utoipa::path(post, path = "/v1/jobs/{name}/start", tag = "jobs", params(("name" = String, Path)), responses(
    (status = 200, body = JobView), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn start(State(service): State<Service>, Path(name): Path<String>) -> Answer<JobView> {
    answer(service, move |service| {
        service.start(&name)?;
        service.show(&name)
    })
    .await
}

/// An incremental sync now.
#[utoipa::path(post, path = "/v1/jobs/{name}/sync", tag = "jobs", params(("name" = String, Path)), responses(
    (status = 200, body = JobView), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn sync(State(service): State<Service>, Path(name): Path<String>) -> Answer<JobView> {
    answer(service, move |service| {
        service.sync(&name)?;
        service.show(&name)
    })
    .await
}

/// Stops syncing. A sync that runs ends soon after the answer, and keeps what it has stored.
#[utoipa::path(post, path = "/v1/jobs/{name}/stop", tag = "jobs", params(("name" = String, Path)), responses(
    (status = 200, body = JobView), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn stop(State(service): State<Service>, Path(name): Path<String>) -> Answer<JobView> {
    answer(service, move |service| {
        service.stop(&name)?;
        service.show(&name)
    })
    .await
}

/// Gives a job up. Its images stay; what a sync stored that did not become one is dropped.
#[utoipa::path(post, path = "/v1/jobs/{name}/cancel", tag = "jobs", params(("name" = String, Path)), responses(
    (status = 200, body = JobView), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn cancel(State(service): State<Service>, Path(name): Path<String>) -> Answer<JobView> {
    answer(service, move |service| {
        service.cancel(&name)?;
        service.show(&name)
    })
    .await
}

/// Finishes a job, after a last sync if asked for.
#[utoipa::path(post, path = "/v1/jobs/{name}/complete", tag = "jobs", params(("name" = String, Path)),
    request_body = Option<CompleteJob>, responses((status = 200, body = JobView), (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody)))]
pub async fn complete(
    State(service): State<Service>,
    Path(name): Path<String>,
    OptionalBody(how): OptionalBody<CompleteJob>,
) -> Answer<JobView> {
    answer(service, move |service| {
        service.complete(&name, &how)?;
        service.show(&name)
    })
    .await
}

/// How many runs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    limit: Option<u32>,
}

/// Runs of a job, newest first.
#[utoipa::path(get, path = "/v1/jobs/{name}/runs", tag = "jobs",
    params(("name" = String, Path), ("limit" = Option<u32>, Query, description = "How many; 50 if absent.")),
    responses((status = 200, body = [RunView]), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn runs(
    State(service): State<Service>,
    Path(name): Path<String>,
    Query(limit): Query<Limit>,
) -> Answer<Vec<RunView>> {
    answer(service, move |service| {
        service.runs(&name, limit.limit.unwrap_or(RUNS_DEFAULT))
    })
    .await
}
