//! The checks of a job's images, as arguments.

use crate::values;
use api::ChecksRequest;

#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Checks {
    /// Boot every N-th new image in QEMU, without a network, and keep the verdict: 1 for each image, 0 for none [default: 0]
    #[arg(long, value_name = "N")]
    boot_every_images: Option<u32>,
    /// Boot the newest image if none was booted for so long, 1d to 90d; 0 means no such limit [default: 0]
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    boot_every: Option<u64>,
    /// Read everything that the store holds of the job's images once in such a time, 1d to 90d; 0 means never [default: 0]
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    verify_every: Option<u64>,
}

impl Checks {
    /// As smcd is asked for them.
    pub fn request(self) -> ChecksRequest {
        ChecksRequest {
            boot_every_images: self.boot_every_images,
            boot_every_seconds: self.boot_every,
            verify_every_seconds: self.verify_every,
        }
    }
}
