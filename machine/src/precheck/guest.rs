//! What is installed that matters to a virtual machine.

use super::Context;
use super::findings::Findings;
use crate::text::{list, shown};

const OS_RELEASE: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];

const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Programs that talk to the host, each with its name for people.
const AGENTS: [(&str, &str); 7] = [
    ("qemu-ga", "QEMU's"),
    ("vmtoolsd", "VMware's"),
    ("hv_kvp_daemon", "Hyper-V's"),
    ("waagent", "Azure's"),
    ("google_guest_agent", "Google's"),
    ("amazon-ssm-agent", "Amazon's"),
    ("xe-daemon", "Xen's"),
];

pub(super) fn check(case: &Context<'_>, out: &mut Findings) {
    operating_system(case, out);
    cloud_init(case, out);
    agents(case, out);
}

fn operating_system(case: &Context<'_>, out: &mut Findings) {
    let texts = OS_RELEASE.iter().map(|file| case.files.text(file));
    let name = texts
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .find_map(|line| {
            line.strip_prefix("PRETTY_NAME=")
                .map(|name| name.trim_matches(['"', '\'']).to_owned())
        });
    match name {
        Some(name) => out.ok("operating_system", shown(&name)),
        None => out.warning(
            "operating_system",
            "which operating system this is could not be determined: there is no /etc/os-release",
            "make sure that this is the root filesystem",
        ),
    }
}

fn cloud_init(case: &Context<'_>, out: &mut Findings) {
    let disabled = "/etc/cloud/cloud-init.disabled";
    if has(case, "cloud-init") && !case.files.exists(disabled) {
        out.warning(
            "cloud_init",
            "cloud-init is installed: on a machine that it does not know it may set the network, the host name and keys anew",
            format!("keep what is configured with: touch {disabled}"),
        );
    } else {
        out.ok(
            "cloud_init",
            "cloud-init changes nothing: it is not installed, or disabled",
        );
    }
}

fn agents(case: &Context<'_>, out: &mut Findings) {
    let found = AGENTS.iter().filter(|(program, _)| has(case, program));
    let names: Vec<String> = found
        .map(|(program, whose)| format!("{whose} ({program})"))
        .collect();
    if names.is_empty() {
        out.ok("guest_agent", "no guest agent is installed");
    } else {
        out.ok(
            "guest_agent",
            format!("guest agents: {}", list(names, AGENTS.len())),
        );
    }
}

fn has(case: &Context<'_>, program: &str) -> bool {
    let mut paths = DIRECTORIES
        .iter()
        .map(|directory| format!("{directory}/{program}"));
    paths.any(|path| case.files.exists(path))
}
