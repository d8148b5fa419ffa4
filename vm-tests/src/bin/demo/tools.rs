//! The programs under demonstration, and what they print.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use testkit::process;

/// `smcd` and `smc-image` of the same build as the demo.
pub struct Tools {
    smcd: PathBuf,
    smc_image: PathBuf,
}

/// What `smcd sync --json` prints.
#[derive(Debug, Clone, Deserialize)]
pub struct SyncReport {
    pub image: String,
    pub kind: String,
    pub method: String,
    pub consistency: String,
    pub seconds: f64,
    pub disks: Vec<DiskReport>,
}

/// One disk of a [`SyncReport`].
#[derive(Debug, Clone, Deserialize)]
pub struct DiskReport {
    pub name: String,
    pub size_bytes: u64,
    pub compared_bytes: u64,
    pub dirty_bytes: u64,
    pub stored_bytes: u64,
    pub digest: String,
}

impl SyncReport {
    pub fn parse(json: &str) -> Result<Self> {
        let report: Self = serde_json::from_str(json.trim()).with_context(|| {
            format!(
                "smcd sync --json printed something else: {}",
                process::tail(json, 5)
            )
        })?;
        ensure!(
            report.disks.len() == 1,
            "one disk was synced, smcd reports {}",
            report.disks.len()
        );
        Ok(report)
    }

    pub fn disk(&self) -> &DiskReport {
        &self.disks[0]
    }
}

impl Tools {
    pub fn locate() -> Result<Self> {
        let demo = std::env::current_exe().context("find the demo's own path")?;
        let beside = |name: &str| {
            let path = demo.with_file_name(name);
            ensure!(
                path.is_file(),
                "{} does not exist: run 'make build' first",
                path.display()
            );
            Ok(path)
        };
        Ok(Self {
            smcd: beside("smcd")?,
            smc_image: beside("smc-image")?,
        })
    }

    pub fn sync(&self, store: &Path, disk: &Path) -> Command {
        let mut command = Command::new(&self.smcd);
        command
            .arg("sync")
            .arg("--store")
            .arg(store)
            .args(["--job", "web01", "--disk"]);
        command.arg(format!("vda={}", disk.display())).arg("--json");
        command
    }

    pub fn digest(&self, disk: &Path) -> Command {
        let mut command = Command::new(&self.smc_image);
        command.arg("digest").arg(disk);
        command
    }

    pub fn serve(&self, store: &Path, socket: &Path, images: &[&str]) -> Command {
        let mut command = Command::new(&self.smc_image);
        command
            .arg("--store")
            .arg(store)
            .arg("serve")
            .arg("--socket")
            .arg(socket)
            .args(images);
        command
    }

    pub fn verify(&self, store: &Path) -> Command {
        let mut command = Command::new(&self.smc_image);
        command.arg("--store").arg(store).arg("verify");
        command
    }
}
