//! Ways to the server: standard input and output, a socket that a service manager passes, and TLS over TCP.

use crate::run::{client_ends, ends, nbdsh, run_client};
use crate::served::{DISK, Store, text};
use anyhow::Result;
use smc_tests::{assert_same_bytes, program};
use std::process::Command;
use testkit::process::display;

/// The server's command line as a list for Python.
fn python_list(command: &Command) -> String {
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    format!("[{}]", words.join(", "))
}

#[test]
fn a_client_starts_the_server_itself() -> Result<()> {
    let store = Store::new("nbd-clients-started")?;
    let reads = "
assert h.get_size() == 64 << 20
first = h.pread(65536, 20 << 20)
h.shutdown()
h = nbd.NBD()
";
    let stdio = store.command(&["web01/2", "--stdio"]);
    nbdsh(&[
        "-c",
        &format!("h.connect_command({})\n{reads}", python_list(&stdio)),
    ]);
    let activated = store.command(&["web01/2"]);
    nbdsh(&[
        "-c",
        &format!(
            "h.connect_systemd_socket_activation({})\n{reads}",
            python_list(&activated)
        ),
    ]);

    let copy = store.path("copy.img");
    let words: Vec<&str> = std::iter::once(activated.get_program())
        .chain(activated.get_args())
        .map(|word| word.to_str().unwrap())
        .collect();
    run_client(
        "nbdcopy",
        &[&["--"][..], &["["], &words, &["]", text(&copy)]].concat(),
    );
    assert_same_bytes(&copy, &store.truth[1])?;
    let info = run_client("nbdinfo", &[&["--json", "--", "["][..], &words, &["]"]].concat()).json();
    assert_eq!(info["exports"][0]["export-size"], DISK);
    store.assert_unchanged()
}

#[test]
fn tls_lets_in_who_has_a_certificate() -> Result<()> {
    let store = Store::new("nbd-clients-tls")?;
    let (ours, theirs) = (store.path("tls"), store.path("other-tls"));
    for dir in [&ours, &theirs] {
        let mut init = Command::new(program("smc-image"));
        init.args(["tls-init", "--host", "localhost", "--host", "127.0.0.1"])
            .arg(dir);
        ends(0, &display(&init), &init);
    }
    let server = ours.join("server");
    let (_server, port) = store.serve_tcp(&["--tls", text(&server)])?;
    let uri = |dir: &str| format!("nbds://localhost:{port}/web01/2:vda?tls-certificates={dir}");
    let client = ours.join("client");
    let info = run_client("nbdinfo", &["--json", &uri(text(&client))]).json();
    assert_eq!(info["TLS"], true);
    assert_eq!(info["exports"][0]["export-size"], DISK);
    let copy = store.path("copy.img");
    run_client("nbdcopy", &["--connections=4", &uri(text(&client)), text(&copy)]);
    assert_same_bytes(&copy, &store.truth[1])?;

    let qemu = |dir: &str, program: &str, args: &[&str]| {
        let tls = format!("tls-creds-x509,id=t,endpoint=client,dir={dir}");
        let image = format!(
            "driver=nbd,export=web01/2:vda,server.type=inet,server.host=localhost,server.port={port},tls-creds=t"
        );
        let options = ["--object", &tls, "--image-opts"];
        let (command, rest) = args.split_first().unwrap();
        run_client(program, &[&[*command][..], &options, rest, &[&image]].concat())
    };
    let info = qemu(text(&client), "qemu-img", &["info", "--output=json"]).json();
    assert_eq!(info["virtual-size"], DISK);
    let said = qemu(text(&client), "qemu-io", &["-r", "-c", "read -P 0 60M 1M"]).stdout;
    assert!(!said.contains("failed"), "{said}");
    let list = format!("tls-creds-x509,id=t,endpoint=client,dir={}", text(&client));
    let port_text = port.to_string();
    let said = run_client(
        "qemu-nbd",
        &[
            "--list",
            "--object",
            &list,
            "--tls-creds",
            "t",
            "-b",
            "localhost",
            "-p",
            &port_text,
        ],
    );
    assert!(said.stdout.contains("export: 'web01/2:vda'"), "{}", said.stdout);

    let nobody = format!("nbd://localhost:{port}/web01/2:vda");
    client_ends(1, "nbdinfo", &["--size", &nobody]);
    client_ends(1, "nbdinfo", &["--size", &uri(text(&theirs.join("client")))]);
    // Neither has kept the server from serving who may come in.
    run_client("nbdinfo", &["--size", &uri(text(&client))]);
    store.assert_unchanged()
}
