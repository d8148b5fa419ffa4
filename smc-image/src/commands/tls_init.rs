//! `smc-image tls-init`: certificates for NBD over TLS, where both sides show who they are.

mod sets;

use crate::context::Context;
use crate::exit::Advise;
use anyhow::{Context as _, ensure};
use certs::{Authority, Pair};
use cli::output;
use cli::units;
use jiff::Timestamp;
use serde::Serialize;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const DIR_DEFAULT: &str = "/etc/smc/tls";
const CLIENT_DEFAULT: &str = "smc-client";

/// Names under which a server is reached from its own machine.
const LOCAL_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Create certificates for serving with TLS
///
/// Creates a certificate authority (DIR/ca), a certificate and key for the server (DIR/server) and a pair for one
/// client (DIR/client), with the file names that QEMU and libnbd look for. The server accepts every client that has a
/// certificate of this authority.
///
/// Files that exist are never overwritten. When it runs again, the command creates what is missing; with --client, a
/// pair for another client (DIR/clients/NAME); with --renew-server, a new pair for the server, and it keeps the
/// previous one beside it. DIR/ca/ca-key.pem is needed for nothing else. Whoever has it can create certificates that
/// the server accepts.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory for the files
    #[arg(value_name = "DIR", default_value = DIR_DEFAULT)]
    dir: PathBuf,
    /// DNS name or IP address under which clients reach the server; may be repeated [default: this machine's name,
    /// localhost, 127.0.0.1, ::1]
    #[arg(long = "host", value_name = "NAME", value_parser = host)]
    hosts: Vec<String>,
    /// Name of the client, which is in its certificate [default: smc-client]
    #[arg(long, value_name = "NAME", value_parser = client)]
    client: Option<String>,
    /// Number of days for which the certificates are valid, but not longer than the authority
    #[arg(long, value_name = "N", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: u32,
    /// Create a new pair for the server, by default for the host names of the previous one
    #[arg(long)]
    renew_server: bool,
}

fn host(text: &str) -> Result<String, String> {
    if text.parse::<IpAddr>().is_ok() || is_dns_name(text) {
        return Ok(text.to_owned());
    }
    Err("this is neither a DNS name nor an IP address".to_owned())
}

fn client(text: &str) -> Result<String, String> {
    imagefmt::check_name("client", text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

/// Labels of letters, digits, `-` and `_`; the first may be `*`, for every host of a domain.
fn is_dns_name(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(good);
    let names = text.strip_prefix("*.").unwrap_or(text);
    text.len() <= 253 && names.split('.').all(is_label)
}

/// A set of files that was made, as `--json` shows it.
#[derive(Debug, Serialize)]
struct Made {
    made: &'static str,
    dir: PathBuf,
    name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hosts: Vec<String>,
    valid_until: Timestamp,
    /// Where the set that it replaces is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    former: Option<PathBuf>,
}

/// What is to be made.
#[derive(Debug)]
struct Plan {
    authority: bool,
    server: bool,
    /// The client's directory, relative to ours, and its name.
    client: Option<(String, String)>,
}

/// Makes what is missing and what is asked for, and says how it is used.
///
/// # Errors
/// Files that exist already or cannot be written.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let dir = std::path::absolute(&args.dir).context("find the directory's path")?;
    let plan = plan(&dir, args)?;
    sets::make_private(&dir)?;
    let maker = Maker { dir: &dir, args };
    // Told when all is done: a reader that leaves must not keep anything from being made.
    let mut made = Vec::new();
    let authority = if plan.authority {
        let (authority, authority_made) = maker.authority()?;
        made.push(authority_made);
        authority
    } else {
        load_authority(&dir)?
    };
    if plan.server {
        made.push(maker.server(&authority)?);
    }
    if let Some((set, name)) = &plan.client {
        made.push(maker.client(&authority, set, name)?);
    }
    let client = plan.client.map_or("client".to_owned(), |(set, _)| set);
    tell(context, &made, &dir, &dir.join(client))?;
    Ok(ExitCode::SUCCESS)
}

fn plan(dir: &Path, args: &Args) -> anyhow::Result<Plan> {
    let has = |name: &str| sets::exists(&dir.join(name));
    let name = args.client.clone();
    let client = match name {
        None if has("client") => None,
        None => Some(("client".to_owned(), CLIENT_DEFAULT.to_owned())),
        Some(name) if has("client") => Some((format!("clients/{name}"), name)),
        Some(name) => Some(("client".to_owned(), name)),
    };
    let plan = Plan {
        authority: !has("ca"),
        server: !has("server") || args.renew_server,
        client,
    };
    check(dir, args, &plan)?;
    Ok(plan)
}

/// Refuses what would overwrite something, or fit nothing that is there.
fn check(dir: &Path, args: &Args, plan: &Plan) -> anyhow::Result<()> {
    let at = dir.display();
    let orphan = ["server", "client", "clients"]
        .into_iter()
        .find(|name| sets::exists(&dir.join(name)));
    if let Some(orphan) = orphan.filter(|_| plan.authority) {
        let refused = Err(anyhow::anyhow!(
            "{at} has {orphan}, but not the authority that made it (ca)"
        ));
        return refused.advise("bring ca back, or choose another directory");
    }
    let taken = plan
        .client
        .as_ref()
        .map(|(set, _)| set)
        .filter(|set| sets::exists(&dir.join(set)));
    if let Some(set) = taken {
        return Err(anyhow::anyhow!("{at}/{set} exists, and is kept"))
            .advise("choose another name with --client");
    }
    if !args.hosts.is_empty() && !plan.server {
        let refused = Err(anyhow::anyhow!(
            "{at}/server exists, and stays as it is with the hosts that it has"
        ));
        return refused.advise("for a new pair with these hosts, add --renew-server");
    }
    if !plan.server && plan.client.is_none() {
        let refused = Err(anyhow::anyhow!(
            "{at} has an authority, a server and a client already, which are kept"
        ));
        return refused
            .advise("add a client with --client NAME, or replace the server's pair with --renew-server");
    }
    Ok(())
}

fn load_authority(dir: &Path) -> anyhow::Result<Authority> {
    let load = || {
        let read = |name: &str| {
            fs::read_to_string(dir.join("ca").join(name)).with_context(|| format!("read {name}"))
        };
        let loaded = Authority::from_pem(read("ca-cert.pem")?, &read("ca-key.pem")?);
        match loaded {
            Err(error) if error.is_expired() => Err(anyhow::Error::from(error))
                .advise("move the directory away and start anew; every client then needs new files"),
            loaded => Ok(loaded?),
        }
    };
    load().with_context(|| format!("use the authority in {}", dir.join("ca").display()))
}

/// Makes sets of files.
struct Maker<'a> {
    dir: &'a Path,
    args: &'a Args,
}

impl Maker<'_> {
    fn authority(&self) -> anyhow::Result<(Authority, Made)> {
        // Two authorities of one name would be hard to tell apart.
        let name = format!("smc CA {}", Timestamp::now().strftime("%Y-%m-%d %H:%M:%S"));
        let (authority, pair) = Authority::new(&name, self.args.days)?;
        let files = [("ca-cert.pem", &*pair.certificate), ("ca-key.pem", &*pair.key)];
        sets::install(self.dir, "ca", &files)?;
        let made = Made {
            made: "ca",
            dir: self.dir.join("ca"),
            name,
            hosts: Vec::new(),
            valid_until: pair.ends,
            former: None,
        };
        Ok((authority, made))
    }

    fn server(&self, authority: &Authority) -> anyhow::Result<Made> {
        let place = self.dir.join("server");
        let is_there = sets::exists(&place);
        let hosts = match &self.args.hosts[..] {
            [] if is_there => former_hosts(&place)?,
            [] => default_hosts(),
            named => named.to_vec(),
        };
        let pair = authority.server(&hosts, self.args.days)?;
        let former = if is_there {
            // Written under the name that the former set gets.
            let name = sets::free_name(self.dir, "server")?;
            install_pair(self.dir, &name, "server", authority, &pair)?;
            sets::exchange(self.dir, "server", &name)?;
            Some(self.dir.join(name))
        } else {
            install_pair(self.dir, "server", "server", authority, &pair)?;
            None
        };
        Ok(Made {
            made: "server",
            dir: place,
            name: hosts.first().cloned().unwrap_or_default(),
            hosts,
            valid_until: pair.ends,
            former,
        })
    }

    fn client(&self, authority: &Authority, set: &str, name: &str) -> anyhow::Result<Made> {
        let pair = authority.client(name, self.args.days)?;
        let (parent, leaf) = match set.rsplit_once('/') {
            Some((parent, leaf)) => (self.dir.join(parent), leaf),
            None => (self.dir.to_owned(), set),
        };
        sets::make_private(&parent)?;
        install_pair(&parent, leaf, "client", authority, &pair)?;
        Ok(Made {
            made: "client",
            dir: self.dir.join(set),
            name: name.to_owned(),
            hosts: Vec::new(),
            valid_until: pair.ends,
            former: None,
        })
    }
}

fn former_hosts(server: &Path) -> anyhow::Result<Vec<String>> {
    let path = server.join("server-cert.pem");
    let find = || {
        let hosts = certs::hosts(&fs::read_to_string(&path)?)?;
        ensure!(!hosts.is_empty(), "it names no host");
        Ok(hosts)
    };
    let found = find().with_context(|| format!("find the hosts of {}", path.display()));
    found.advise("name the server's hosts with --host")
}

/// This machine's name, where it can stand in a certificate, and what it is called by itself.
fn default_hosts() -> Vec<String> {
    let own = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok());
    let own = own.filter(|name| host(name).is_ok() && !LOCAL_HOSTS.contains(&name.as_str()));
    own.into_iter().chain(LOCAL_HOSTS.map(str::to_owned)).collect()
}

/// Writes a pair with what its owner trusts, under the names that QEMU and libnbd look for.
fn install_pair(
    parent: &Path,
    name: &str,
    role: &str,
    authority: &Authority,
    pair: &Pair,
) -> anyhow::Result<()> {
    let (certificate, key) = (format!("{role}-cert.pem"), format!("{role}-key.pem"));
    let files = [
        ("ca-cert.pem", authority.certificate()),
        (&certificate, &pair.certificate),
        (&key, &pair.key),
    ];
    sets::install(parent, name, &files)
}

fn tell(context: &Context, made: &[Made], dir: &Path, client: &Path) -> anyhow::Result<()> {
    if context.json {
        return made.iter().try_for_each(output::json);
    }
    made.iter().try_for_each(tell_set)?;
    explain(dir, client)
}

fn tell_set(made: &Made) -> anyhow::Result<()> {
    let until = units::local_date(made.valid_until);
    let what = if made.hosts.is_empty() {
        made.name.clone()
    } else {
        made.hosts.join(", ")
    };
    output::line(format_args!(
        "{}: {what}; valid until {until}",
        made.dir.display()
    ))?;
    match &made.former {
        Some(former) => output::line(format_args!("  the one before is kept in {}", former.display())),
        None => Ok(()),
    }
}

fn explain(dir: &Path, client: &Path) -> anyhow::Result<()> {
    let (at, client) = (dir.display(), client.display());
    output::line(format_args!(
        "\nServe:   smc-image serve --listen 0.0.0.0:10809 --tls {at}/server\n\
         Look:    nbdinfo --list 'nbds://HOST/?tls-certificates={client}'\n\
         QEMU:    qemu-img info --object tls-creds-x509,id=tls,dir={client},endpoint=client --image-opts \
         driver=nbd,host=HOST,port=10809,tls-creds=tls,export=JOB/latest\n\n\
         A client needs the files in {client}, and nothing else. Keep {at}/ca/ca-key.pem to yourself."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_addresses() {
        for good in [
            "web01",
            "a.b-c.example",
            "*.example.org",
            "127.0.0.1",
            "::1",
            "under_score",
        ] {
            assert!(host(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "a..b",
            "a b",
            "http://x",
            "x:1",
            "*",
            "a.*.b",
            "ü",
            &"a".repeat(64),
        ] {
            assert!(host(bad).is_err(), "{bad}");
        }
    }
}
