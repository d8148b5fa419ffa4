//! Compiles the eBPF programs. `CLANG` names another clang; one from Debian 12 or newer will do.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-env-changed=CLANG");
    let clang = env::var_os("CLANG").unwrap_or_else(|| "clang".into());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut command = Command::new(&clang);
    // v3: atomic operations other than addition, which Linux has from 5.12 on.
    command
        .args(["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror"])
        .args(["-fno-ident", "-fdebug-prefix-map=.=smc"])
        .args(["-c", "bpf/tracker.bpf.c", "-o"])
        .arg(out.join("tracker.bpf.o"));
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!(
            "{} could not compile bpf/tracker.bpf.c: {status}",
            clang.display()
        ),
        Err(error) => panic!(
            "cannot run {}: {error}. Install clang and libbpf-dev ('make setup' does) or name a clang in CLANG",
            clang.display()
        ),
    }
}
