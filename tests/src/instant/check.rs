//! Checks one image: its filesystems replay their journals on a copy and are clean, and the workload finds one instant on them.

use super::{Scene, WORKLOAD, checker, postgres};
use crate::{code, stderr};
use anyhow::{Result, bail, ensure};
use nix::mount::MsFlags;
use std::process::Command;
use testkit::guard::{LoopDevice, Mount, ScratchDir, wait_until_free};
use testkit::process::run;

impl Scene {
    /// Checks an image of both disks. The disks themselves are mounted nowhere: their filesystems have the same ids.
    ///
    /// # Errors
    /// It is not one instant, or a filesystem is not clean.
    pub(super) fn check(&self, image: &str) -> Result<()> {
        self.check_pair(image, image)
    }

    /// A disk of one image and a disk of a later one are found not to be one instant: else [`check`](Self::check) would show nothing.
    ///
    /// # Errors
    /// They are not found.
    pub(super) fn check_mixture(&self, first: &str, later: &str) -> Result<()> {
        let found = match self.check_pair(first, later) {
            Ok(()) => bail!("a mixture of {first} and {later} is taken for one instant"),
            Err(found) => format!("{found:#}"),
        };
        ensure!(found.contains("written later, and there already"), "{found}");
        Ok(())
    }

    fn check_pair(&self, of_vda: &str, of_vdb: &str) -> Result<()> {
        let scratch = ScratchDir::new("instant-check")?;
        let copies = [
            self.copy(of_vda, "vda", &scratch)?,
            self.copy(of_vdb, "vdb", &scratch)?,
        ];
        let mounts = [
            Mount::new(
                copies[0].path(),
                &scratch.join("on-a"),
                self.fs_type,
                MsFlags::empty(),
            )?,
            Mount::new(
                copies[1].path(),
                &scratch.join("on-b"),
                self.fs_type,
                MsFlags::empty(),
            )?,
        ];
        let mut check = Command::new("/usr/bin/python3");
        run(check
            .args([WORKLOAD, "check"])
            .args([mounts[0].path(), mounts[1].path()]))?;
        postgres::check([mounts[0].path(), mounts[1].path()], scratch.path())?;
        for mount in mounts {
            mount.unmount()?;
        }
        let (program, arguments) = checker(self.fs_type);
        for copy in &copies {
            wait_until_free(copy.path())?;
            let found = Command::new(program).args(arguments).arg(copy.path()).output()?;
            let said = String::from_utf8_lossy(&found.stdout);
            ensure!(found.status.success(), "{program}: {said}{}", stderr(&found));
        }
        Ok(())
    }

    fn copy(&self, image: &str, disk: &str, scratch: &ScratchDir) -> Result<LoopDevice> {
        let file = scratch.join(disk);
        let name = format!("{image}:{disk}");
        let exported = self
            .bench
            .image(&["export", &name, &file.display().to_string()])?;
        ensure!(code(&exported) == 0, "export {name}: {}", stderr(&exported));
        Ok(LoopDevice::attach(&file)?)
    }
}
