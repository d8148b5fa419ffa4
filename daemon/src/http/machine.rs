//! The daemon, the machine's disks, and what can be found out before a job is begun.

use super::Service;
use super::answer::{Answer, Body, Query, answer};
use crate::service;
use api::{DiskList, ErrorBody, Estimate, EstimateRequest, ExportView, Precheck, ServiceStatus};
use axum::Json;
use axum::extract::{RawQuery, State};
use serde::Deserialize;
use std::path::PathBuf;

/// The daemon.
#[utoipa::path(get, path = "/v1/status", tag = "machine", responses((status = 200, body = ServiceStatus)))]
pub async fn status(State(service): State<Service>) -> Answer<ServiceStatus> {
    // It asks no store, so it waits for none.
    Ok(Json(service.status()))
}

/// Where images are to lie.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreQuery {
    store: Option<PathBuf>,
}

/// The machine's disks: which a job of all disks has, and why not the others.
#[utoipa::path(get, path = "/v1/disks", tag = "machine",
    params(("store" = Option<String>, Query, description = "Directory of the store; the configured one if absent.")),
    responses((status = 200, body = DiskList), (status = 400, body = ErrorBody), (status = 500, body = ErrorBody)))]
pub async fn disks(State(service): State<Service>, Query(query): Query<StoreQuery>) -> Answer<DiskList> {
    answer(service, move |service| service.disks(query.store.as_deref())).await
}

/// Whether this machine is ready to be migrated and to boot elsewhere.
#[utoipa::path(get, path = "/v1/precheck", tag = "machine",
    params(("store" = Option<String>, Query, description = "Directory of the store; the configured one if absent."),
    ("disk" = Option<Vec<String>>, Query, description = "Kernel names of the disks; all that can be migrated if absent.")),
    responses((status = 200, body = Precheck), (status = 400, body = ErrorBody)))]
pub async fn precheck(State(service): State<Service>, RawQuery(query): RawQuery) -> Answer<Precheck> {
    answer(service, move |service| {
        service.precheck(query.as_deref().unwrap_or(""))
    })
    .await
}

/// What a job would cost: disks and store are tried for some seconds.
#[utoipa::path(post, path = "/v1/estimate", tag = "machine", request_body = EstimateRequest, responses(
    (status = 200, body = Estimate), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody),
    (status = 500, body = ErrorBody)))]
pub async fn estimate(
    State(service): State<Service>,
    Body(request): Body<EstimateRequest>,
) -> Answer<Estimate> {
    answer(service, move |manager| service::estimate(manager, &request)).await
}

/// Images that are in use, and by whom.
#[utoipa::path(get, path = "/v1/exports", tag = "machine", responses((status = 200, body = [ExportView])))]
pub async fn exports(State(service): State<Service>) -> Answer<Vec<ExportView>> {
    answer(service, |service| Ok(service.exports())).await
}
