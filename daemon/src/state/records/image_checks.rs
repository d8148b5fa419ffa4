//! The checks of a job's images, in its record.

use super::Extra;
use crate::job::{Checked, ImageChecks};
use api::ChecksRequest;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Which checks are made, and what the last ones found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoredChecks {
    pub(super) boot_every_images: u32,
    pub(super) boot_every_seconds: u64,
    pub(super) verify_every_seconds: u64,
    pub(super) booted: Option<StoredChecked>,
    pub(super) verified: Option<StoredChecked>,
    is_verifying: bool,
    #[serde(flatten)]
    extra: Extra,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredChecked {
    pub(super) sequence: u64,
    finished: Timestamp,
    good: bool,
    is_made: bool,
    text: String,
    #[serde(flatten)]
    extra: Extra,
}

/// What was asked for at the job's creation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoredChecksRequest {
    #[serde(skip_serializing_if = "Option::is_none")]
    boot_every_images: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    boot_every_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verify_every_seconds: Option<u64>,
}

impl StoredChecks {
    pub(super) fn inherit(&mut self, before: Self) {
        self.extra = before.extra;
        for (now, before) in [
            (&mut self.booted, before.booted),
            (&mut self.verified, before.verified),
        ] {
            super::job::keep_value(now.as_mut(), before, |checked| &mut checked.extra);
        }
    }

    pub(super) fn into_checks(self) -> ImageChecks {
        ImageChecks {
            boot_every_images: self.boot_every_images,
            boot_every_seconds: self.boot_every_seconds,
            verify_every_seconds: self.verify_every_seconds,
            booted: self.booted.map(StoredChecked::into_checked),
            verified: self.verified.map(StoredChecked::into_checked),
            is_verifying: self.is_verifying,
        }
    }
}

impl From<&ImageChecks> for StoredChecks {
    fn from(checks: &ImageChecks) -> Self {
        Self {
            boot_every_images: checks.boot_every_images,
            boot_every_seconds: checks.boot_every_seconds,
            verify_every_seconds: checks.verify_every_seconds,
            booted: checks.booted.as_ref().map(StoredChecked::from),
            verified: checks.verified.as_ref().map(StoredChecked::from),
            is_verifying: checks.is_verifying,
            extra: Extra::new(),
        }
    }
}

impl StoredChecked {
    fn into_checked(self) -> Checked {
        Checked {
            sequence: self.sequence,
            finished: self.finished,
            good: self.good,
            is_made: self.is_made,
            text: self.text,
        }
    }
}

impl From<&Checked> for StoredChecked {
    fn from(checked: &Checked) -> Self {
        Self {
            sequence: checked.sequence,
            finished: checked.finished,
            good: checked.good,
            is_made: checked.is_made,
            text: checked.text.clone(),
            extra: Extra::new(),
        }
    }
}

impl StoredChecksRequest {
    /// `None` if nothing was asked for: earlier versions refuse requests with fields that they do not know.
    pub(super) fn of(request: &ChecksRequest) -> Option<Self> {
        let ChecksRequest {
            boot_every_images,
            boot_every_seconds,
            verify_every_seconds,
        } = *request;
        (!request.is_empty()).then_some(Self {
            boot_every_images,
            boot_every_seconds,
            verify_every_seconds,
        })
    }

    pub(super) fn into_request(self) -> ChecksRequest {
        ChecksRequest {
            boot_every_images: self.boot_every_images,
            boot_every_seconds: self.boot_every_seconds,
            verify_every_seconds: self.verify_every_seconds,
        }
    }
}
