//! Targets: other machines that take this one's images.

use super::Service;
use super::answer::{Answer, Body, Failure, answer, on_thread};
use crate::service::targets;
use api::{AddTarget, ErrorBody, TargetList, TargetView};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;

/// Describes the parameter of every path below `/v1/targets/`.
const NAME: &str = "The name of the target on this machine, for example `backup`.";

/// Lists the targets that this machine knows, and what each of them says.
///
/// A target that does not answer is waited for, for about 20 seconds.
#[utoipa::path(get, path = "/v1/targets", tag = "targets", responses(
    (status = 200, body = TargetList), (status = 500, body = ErrorBody)))]
pub async fn list(State(service): State<Service>) -> Answer<TargetList> {
    answer(service, |service| targets::list(service)).await
}

/// Makes a target known: this machine makes a key, and the target signs it.
///
/// The line is used up, whether the answer arrives or not.
#[utoipa::path(post, path = "/v1/targets", tag = "targets", request_body = AddTarget, responses(
    (status = 201, body = TargetView), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn add(
    State(service): State<Service>,
    Body(request): Body<AddTarget>,
) -> Result<(StatusCode, Json<TargetView>), Failure> {
    let added = on_thread(service, move |service| targets::add(service, &request)).await?;
    Ok((StatusCode::CREATED, Json(added)))
}

/// Has a target sign a new key of this machine. A sync does this by itself when less than 30 days are left.
#[utoipa::path(post, path = "/v1/targets/{name}/renew", tag = "targets", params(("name" = String, Path, description = NAME)),
    responses((status = 200, body = TargetView), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn renew(State(service): State<Service>, Path(name): Path<String>) -> Answer<TargetView> {
    answer(service, move |service| targets::renew(service, &name)).await
}

/// Forgets a target: this machine's key for it is deleted. The images there remain.
///
/// It is refused while an unfinished job sends its images there.
#[utoipa::path(delete, path = "/v1/targets/{name}", tag = "targets", params(("name" = String, Path, description = NAME)),
    responses((status = 204, description = "The target is forgotten."), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody)))]
pub async fn remove(State(service): State<Service>, Path(name): Path<String>) -> Result<StatusCode, Failure> {
    on_thread(service, move |service| targets::remove(service, &name)).await?;
    Ok(StatusCode::NO_CONTENT)
}
