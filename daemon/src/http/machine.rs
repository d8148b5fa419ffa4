//! The daemon, the machine's disks, and what can be checked before a job is created.

use super::Service;
use super::answer::{Answer, Body, Query, answer};
use crate::job::{Refusal, Refused};
use crate::service::create::place_of;
use crate::service::{disks, estimate, precheck, tracking, view};
use api::{DiskList, ErrorBody, Estimate, EstimateRequest, ExportView, Precheck, ServiceStatus, TrackerView};
use axum::Json;
use axum::extract::{RawQuery, State};
use serde::Deserialize;

/// Returns the state of the daemon.
#[utoipa::path(get, path = "/v1/status", tag = "machine", responses((status = 200, body = ServiceStatus)))]
pub async fn status(State(service): State<Service>) -> Answer<ServiceStatus> {
    // It reads no store, so it never waits for one.
    Ok(Json(view::status(&service)))
}

/// The store or target that a request is about.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlaceQuery {
    store: Option<String>,
    target: Option<String>,
}

/// Lists the machine's disks, and says which of them a job with `all_disks` would include and why not the others.
#[utoipa::path(get, path = "/v1/disks", tag = "machine",
    params(("store" = Option<String>, Query, description = "The directory of the store, as an absolute path. Default: the store in the daemon's configuration."),
    ("target" = Option<String>, Query, description = "The name of the target that the images go to, in place of a store.")),
    responses((status = 200, body = DiskList), (status = 400, body = ErrorBody), (status = 500, body = ErrorBody)))]
pub async fn disks(State(service): State<Service>, Query(query): Query<PlaceQuery>) -> Answer<DiskList> {
    answer(service, move |service| {
        let place = place_of(service, query.store.as_deref(), query.target.as_deref())?;
        disks::list(service, &place)
    })
    .await
}

/// Checks whether this machine can be migrated and whether a copy of it would boot elsewhere.
///
/// It changes nothing. A finding that could not be checked is a warning.
#[utoipa::path(get, path = "/v1/precheck", tag = "machine",
    params(("store" = Option<String>, Query, description = "The directory of the store, as an absolute path. Default: the store in the daemon's configuration."),
    ("target" = Option<String>, Query, description = "The name of the target that the images go to, in place of a store."),
    ("disk" = Option<Vec<String>>, Query, description = "The kernel's names of the disks to check, for example `vda`; may be repeated. Default: all disks that can be migrated.")),
    responses((status = 200, body = Precheck), (status = 400, body = ErrorBody)))]
pub async fn precheck(State(service): State<Service>, RawQuery(query): RawQuery) -> Answer<Precheck> {
    let wanted = PrecheckQuery::parse(query.as_deref().unwrap_or(""))?;
    answer(service, move |service| {
        let place = place_of(service, wanted.store.as_deref(), wanted.target.as_deref())?;
        precheck::precheck(service, &place, wanted.disks)
    })
    .await
}

/// `store=DIR` or `target=NAME`, and `disk=NAME` for each disk: repeated parameters, which `Query` does not take.
#[derive(Debug, Default, PartialEq, Eq)]
struct PrecheckQuery {
    store: Option<String>,
    target: Option<String>,
    disks: Vec<String>,
}

impl PrecheckQuery {
    fn parse(query: &str) -> Refused<Self> {
        let mut parsed = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "store" => parsed.store = Some(value.into_owned()),
                "target" => parsed.target = Some(value.into_owned()),
                "disk" => parsed.disks.push(value.into_owned()),
                other => {
                    let other = other.escape_debug();
                    return Err(Refusal::invalid(format!(
                        "there is no parameter {other}: only store, target and disk are allowed"
                    )));
                }
            }
        }
        Ok(parsed)
    }
}

/// Estimates how long a job would take and how much space it needs.
///
/// It reads from each disk and writes to the store for a few seconds, so the answer takes that long. It creates no store
/// and leaves no file behind.
#[utoipa::path(post, path = "/v1/estimate", tag = "machine", request_body = EstimateRequest, responses(
    (status = 200, body = Estimate), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody),
    (status = 500, body = ErrorBody)))]
pub async fn estimate(
    State(service): State<Service>,
    Body(request): Body<EstimateRequest>,
) -> Answer<Estimate> {
    answer(service, move |service| estimate::estimate(service, &request)).await
}

/// Lists the images in use: served, mounted, being read, or pinned.
#[utoipa::path(get, path = "/v1/exports", tag = "machine", responses((status = 200, body = [ExportView])))]
pub async fn exports(State(service): State<Service>) -> Answer<Vec<ExportView>> {
    answer(service, |service| Ok(view::exports(service))).await
}

/// Tells which disks are tracked, since when, what was written to them, and why the next sync cannot rely on it.
#[utoipa::path(get, path = "/v1/tracker", tag = "machine", responses((status = 200, body = TrackerView)))]
pub async fn tracker(State(service): State<Service>) -> Answer<TrackerView> {
    answer(service, |parts| Ok(tracking::view(parts))).await
}

/// Takes the tracker out of the kernel. It is refused while an unfinished job tracks its disks.
#[utoipa::path(delete, path = "/v1/tracker", tag = "machine", responses(
    (status = 200, body = TrackerView), (status = 409, body = ErrorBody), (status = 500, body = ErrorBody)))]
pub async fn remove_tracker(State(service): State<Service>) -> Answer<TrackerView> {
    answer(service, |parts| tracking::remove(parts)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_may_be_repeated_and_unknown_parameters_are_refused() {
        let parsed = PrecheckQuery::parse("disk=vda&store=%2Fsrv%2Fa+b&disk=vdb").unwrap();
        assert_eq!(parsed.disks, ["vda", "vdb"]);
        assert_eq!(parsed.store, Some("/srv/a b".into()));
        assert_eq!(PrecheckQuery::parse(""), Ok(PrecheckQuery::default()));
        let refusal = PrecheckQuery::parse("disks=vda").unwrap_err();
        assert!(refusal.message.contains("no parameter disks"), "{refusal}");
    }
}
