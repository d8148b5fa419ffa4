//! How the images of a job are checked by themselves: whether they boot, and whether the store still has all of them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which checks to make of a job's images, beside its syncs. A field that is absent is left as it is; for a new job, it is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChecksRequest {
    /// Boot every N-th new image in QEMU, without a network, and keep the boot verdict: 1 (each image) to 1000, or 0 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1000)]
    pub boot_every_images: Option<u32>,
    /// Boot the newest image if none was booted for so long, in seconds: 86400 (1 d) to 7776000 (90 d), or 0 for no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 7_776_000)]
    pub boot_every_seconds: Option<u64>,
    /// Read everything that the store holds of the job's images once in such a time, in seconds: 86400 (1 d) to 7776000
    /// (90 d), or 0 for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 7_776_000)]
    pub verify_every_seconds: Option<u64>,
}

impl ChecksRequest {
    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The checks that are made of a job's images beside its syncs, and what the last ones found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChecksView {
    /// Every N-th new image is booted; 0: none.
    pub boot_every_images: u32,
    /// The newest image is booted if none was booted for so long, in seconds; 0: no such limit.
    pub boot_every_seconds: u64,
    /// Everything that the store holds of the job's images is read once in such a time, in seconds; 0: never.
    pub verify_every_seconds: u64,
    /// The last boot check. Absent before the first.
    pub booted: Option<CheckView>,
    /// The last verification. Absent before the first.
    pub verified: Option<CheckView>,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckView {
    /// The newest image that was checked, for example `web01/7`.
    pub image: String,
    /// When the check ended.
    #[schema(value_type = String, format = DateTime)]
    pub finished: Timestamp,
    /// Whether the image boots, or the images are undamaged.
    pub good: bool,
    /// What was found: a few lines, the last ones of the console if the image did not boot.
    pub text: String,
}
