//! Jobs and their runs.

use super::Service;
use super::answer::{Answer, Body, Failure, OptionalBody, Query, answer, on_thread};
use crate::service::{actions, create, deleting, view};
use api::{CompleteJob, CreateJob, ErrorBody, JobView, ModifyJob, RunView};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

/// How many runs are returned if the request does not say.
const RUNS_DEFAULT: u32 = 50;

/// Describes the parameter of every path below `/v1/jobs/`.
const NAME: &str = "The name of the job, for example `web01`.";

/// Lists all jobs, sorted by name.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", responses(
    (status = 200, body = [JobView], description = "All jobs.")))]
pub async fn list(State(service): State<Service>) -> Answer<Vec<JobView>> {
    answer(service, |service| Ok(view::list(service))).await
}

/// Creates a job.
///
/// All values are checked before anything is created; an error names the value and its range. With `client_token`, the
/// request can be repeated safely.
#[utoipa::path(post, path = "/v1/jobs", tag = "jobs", request_body = CreateJob, responses(
    (status = 201, body = JobView, description = "The job was created."),
    (status = 200, body = JobView, description = "The same request, recognized by its client token, created this job before."),
    (status = 400, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn create(
    State(service): State<Service>,
    Body(request): Body<CreateJob>,
) -> Result<(StatusCode, Json<JobView>), Failure> {
    on_thread(service, move |service| {
        let (name, made) = create::create(service, &request)?;
        let status = if made { StatusCode::CREATED } else { StatusCode::OK };
        Ok((status, Json(view::show(service, &name)?)))
    })
    .await
}

/// Returns the current state of a job.
#[utoipa::path(get, path = "/v1/jobs/{name}", tag = "jobs", params(("name" = String, Path, description = NAME)), responses(
    (status = 200, body = JobView), (status = 404, body = ErrorBody)))]
pub async fn show(State(service): State<Service>, Path(name): Path<String>) -> Answer<JobView> {
    answer(service, move |service| view::show(service, &name)).await
}

/// Changes parameters of a job.
///
/// Either all of the given parameters are changed, or none. Which of them can be changed depends on the job's state; the
/// description of each field says when the change takes effect.
#[utoipa::path(patch, path = "/v1/jobs/{name}", tag = "jobs", params(("name" = String, Path, description = NAME)), request_body = ModifyJob,
    responses((status = 200, body = JobView), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody)))]
pub async fn modify(
    State(service): State<Service>,
    Path(name): Path<String>,
    Body(change): Body<ModifyJob>,
) -> Answer<JobView> {
    answer(service, move |service| {
        actions::modify(service, &name, &change)?;
        view::show(service, &name)
    })
    .await
}

/// Parameters of a deletion.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delete {
    /// Delete the job's images too.
    #[serde(default)]
    purge: bool,
}

/// Deletes a job, and its images if `purge` is true.
///
/// Without `purge` the images remain in the store. With it, the request is refused while an image is in use or pinned, or
/// while another job's first sync builds on one. For a job that is Deleting, a request without `purge` cancels the
/// deletion of the remaining images.
#[utoipa::path(delete, path = "/v1/jobs/{name}", tag = "jobs",
    params(("name" = String, Path, description = NAME), ("purge" = Option<bool>, Query, description = "Delete the job's images too. Default: false.")),
    responses((status = 200, body = JobView, description = "The job's images are being deleted, and then the job."),
    (status = 204, description = "The job is deleted."), (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn delete(
    State(service): State<Service>,
    Path(name): Path<String>,
    Query(how): Query<Delete>,
) -> Result<Response, Failure> {
    on_thread(service, move |service| {
        if deleting::delete(service, &name, how.purge)? {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        // With few images the job may be deleted already.
        Ok(view::show(service, &name).map_or_else(
            |_| StatusCode::NO_CONTENT.into_response(),
            |view| Json(view).into_response(),
        ))
    })
    .await
}

/// Starts a job, or resumes it after a stop or an error.
///
/// The first sync is full. If there are images already, the sync is incremental. What an unfinished sync stored is not
/// stored again. The answer does not wait for the sync.
#[utoipa::path(post, path = "/v1/jobs/{name}/start", tag = "jobs", params(("name" = String, Path, description = NAME)), responses(
    (status = 200, body = JobView), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn start(State(service): State<Service>, Path(name): Path<String>) -> Answer<JobView> {
    answer(service, move |service| {
        actions::start(service, &name)?;
        view::show(service, &name)
    })
    .await
}

/// Starts an incremental sync now.
///
/// The job must be Waiting. The next scheduled sync starts one interval after this one has ended. The answer does not
/// wait for the sync.
#[utoipa::path(post, path = "/v1/jobs/{name}/sync", tag = "jobs", params(("name" = String, Path, description = NAME)), responses(
    (status = 200, body = JobView), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn sync(State(service): State<Service>, Path(name): Path<String>) -> Answer<JobView> {
    answer(service, move |service| {
        actions::sync(service, &name)?;
        view::show(service, &name)
    })
    .await
}

/// Confirms a job that was found in a store.
///
/// When the daemon's state was lost, jobs are restored from the copies in their stores. If nothing proves that this machine
/// wrote a copy, the job is Stopped and starts no sync before it is confirmed: check its disks and hooks first. Confirming a
/// job that needs no confirmation changes nothing.
#[utoipa::path(post, path = "/v1/jobs/{name}/confirm", tag = "jobs", params(("name" = String, Path, description = NAME)), responses(
    (status = 200, body = JobView), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn confirm(State(service): State<Service>, Path(name): Path<String>) -> Answer<JobView> {
    answer(service, move |service| {
        actions::confirm(service, &name)?;
        view::show(service, &name)
    })
    .await
}

/// Stops a job.
///
/// A running sync ends shortly after the answer and keeps what it has stored; `start` resumes it. Images remain.
#[utoipa::path(post, path = "/v1/jobs/{name}/stop", tag = "jobs", params(("name" = String, Path, description = NAME)), responses(
    (status = 200, body = JobView), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn stop(State(service): State<Service>, Path(name): Path<String>) -> Answer<JobView> {
    answer(service, move |service| {
        actions::stop(service, &name)?;
        view::show(service, &name)
    })
    .await
}

/// Cancels a job.
///
/// Images remain. What an unfinished sync stored is discarded. A canceled job cannot be started again, but a new job can
/// continue its images.
#[utoipa::path(post, path = "/v1/jobs/{name}/cancel", tag = "jobs", params(("name" = String, Path, description = NAME)), responses(
    (status = 200, body = JobView), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn cancel(State(service): State<Service>, Path(name): Path<String>) -> Answer<JobView> {
    answer(service, move |service| {
        actions::cancel(service, &name)?;
        view::show(service, &name)
    })
    .await
}

/// Completes a job, after one last sync if `last_sync` is true.
///
/// The job is then Finished: there are no more syncs. If the last sync fails, the job is InError, and `start` repeats the
/// last sync.
#[utoipa::path(post, path = "/v1/jobs/{name}/complete", tag = "jobs", params(("name" = String, Path, description = NAME)),
    request_body = Option<CompleteJob>, responses((status = 200, body = JobView), (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody)))]
pub async fn complete(
    State(service): State<Service>,
    Path(name): Path<String>,
    OptionalBody(how): OptionalBody<CompleteJob>,
) -> Answer<JobView> {
    answer(service, move |service| {
        actions::complete(service, &name, &how)?;
        view::show(service, &name)
    })
    .await
}

/// Parameters of the list of runs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    limit: Option<u32>,
}

/// Lists the runs of a job, newest first.
#[utoipa::path(get, path = "/v1/jobs/{name}/runs", tag = "jobs",
    params(("name" = String, Path, description = NAME), ("limit" = Option<u32>, Query, description = "How many runs to return. Default: 50.")),
    responses((status = 200, body = [RunView]), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn runs(
    State(service): State<Service>,
    Path(name): Path<String>,
    Query(limit): Query<Limit>,
) -> Answer<Vec<RunView>> {
    answer(service, move |service| {
        view::runs(service, &name, limit.limit.unwrap_or(RUNS_DEFAULT))
    })
    .await
}
