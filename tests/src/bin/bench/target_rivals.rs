//! What copies a disk over a network beside our sync to a target.

use crate::measure::run;
use crate::target::Stage;
use anyhow::Result;
use smc_tests::network::Pair;
use smc_tests::{Disk, program};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::process::{Server, wait_for};

/// A tool that makes a copy of a disk at the target, and leaves it durable.
pub struct Rival {
    pub name: &'static str,
    /// Starts what it needs at the target.
    pub prepare: fn(&Stage, &Disk) -> Result<Option<Server>>,
    /// What runs at the source.
    pub command: fn(&Stage, &Disk) -> Command,
}

/// Nothing is compared at the end: TLS protects what is under way.
pub const NBDCOPY: Rival = Rival {
    name: "nbdcopy over TLS to nbdkit's file plugin, flushed",
    prepare: |stage, disk| {
        let tls = stage.bench.dir.join("tls");
        let address = stage.pair.target_at(10809);
        if !tls.exists() {
            let mut make = Command::new(program("smc-image"));
            make.arg("tls-init").arg(&tls);
            run(make.args(["--host", &address.ip().to_string()]))?;
        }
        File::create(stage.copy())?.set_len(disk.size_bytes)?;
        let mut nbdkit = stage.pair.target.command("nbdkit");
        nbdkit.args([
            "-f",
            "-i",
            &address.ip().to_string(),
            "-p",
            &address.port().to_string(),
        ]);
        nbdkit.args(["--tls=require", "--tls-verify-peer"]);
        nbdkit.arg(format!("--tls-certificates={}", tls.join("server").display()));
        nbdkit.arg("file").arg(stage.copy());
        let server = Server::start(&mut nbdkit, &stage.bench.dir.join("nbdkit.log"))?;
        wait_for("nbdkit listens", || stage.pair.source.reaches(address));
        Ok(Some(server))
    },
    command: |stage, disk| {
        let mut command = stage.pair.source.command("nbdcopy");
        let certificates = stage.bench.dir.join("tls/client");
        command.arg("--flush").arg(disk.path()).arg(format!(
            "nbds://{}/?tls-certificates={}",
            stage.pair.target_at(10809),
            certificates.display()
        ));
        command
    },
};

/// It compares a checksum of the whole file at the end; where the target has an earlier copy, it sends what differs.
pub const RSYNC: Rival = Rival {
    name: "rsync --copy-devices --inplace --fsync over ssh",
    prepare: |_, _| Ok(None),
    command: |stage, disk| {
        let mut command = stage.pair.source.command("rsync");
        command.args(["--copy-devices", "--inplace", "--fsync", "-e"]);
        command.arg(format!("ssh -F {}", stage.ssh.config().display()));
        command.arg(disk.path());
        command.arg(format!("target:{}", stage.copy().display()));
        command
    },
};

/// What arrives is stored as it comes, and never unpacked.
pub const ZSTD: Rival = Rival {
    name: "zstd -T0 | ssh 'cat > FILE', fsync included",
    prepare: |_, _| Ok(None),
    command: |stage, disk| {
        let copy = stage.copy().display().to_string();
        let mut command = stage.pair.source.command("bash");
        command.args(["-o", "pipefail", "-c"]);
        command.arg(format!(
            "zstd -q -T0 -c <{} | ssh -F {} target 'cat >{copy} && sync {copy}'",
            disk.path().display(),
            stage.ssh.config().display()
        ));
        command
    },
};

/// An ssh server at the target, and what a client at the source needs for it. Both use the fastest cipher there is.
pub struct Ssh {
    directory: PathBuf,
    _server: Server,
}

impl Ssh {
    /// Starts it; its files lie in `parent`.
    pub fn start(parent: &Path, pair: &Pair) -> Result<Ssh> {
        let directory = parent.join("ssh");
        fs::create_dir(&directory)?;
        let address = pair.target_at(22);
        for name in ["host", "user"] {
            run(Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(directory.join(name)))?;
        }
        let here = directory.display();
        fs::write(
            directory.join("server"),
            format!(
                "ListenAddress {address}\nHostKey {here}/host\nAuthorizedKeysFile {here}/user.pub\nPidFile none\n\
                 StrictModes no\nPermitRootLogin prohibit-password\nCiphers aes128-gcm@openssh.com\n"
            ),
        )?;
        fs::write(
            directory.join("client"),
            format!(
                "Host target\nHostName {}\nUser root\nIdentityFile {here}/user\nIdentitiesOnly yes\n\
                 UserKnownHostsFile {here}/known\nStrictHostKeyChecking accept-new\nLogLevel ERROR\n\
                 Ciphers aes128-gcm@openssh.com\n",
                address.ip()
            ),
        )?;
        // sshd wants this directory, which its service would have made.
        fs::create_dir_all("/run/sshd")?;
        let mut sshd = pair.target.command("/usr/sbin/sshd");
        sshd.arg("-D").arg("-e").arg("-f").arg(directory.join("server"));
        let server = Server::start(&mut sshd, &directory.join("log"))?;
        wait_for("sshd listens", || pair.source.reaches(address));
        Ok(Ssh {
            directory,
            _server: server,
        })
    }

    /// The client's configuration, which knows the target as `target`.
    pub fn config(&self) -> PathBuf {
        self.directory.join("client")
    }
}
