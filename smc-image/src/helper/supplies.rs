//! What the helper guest is made of: a kernel, its drivers, the programs that put volumes together, and this program as init.
//!
//! They are those of this machine. Those in the image may be missing or damaged, lie inside the volumes that are to be
//! opened, and are not ours to run.

use super::Means;
use crate::exit::Advise;
use anyhow::{Context, anyhow};
use boot::{Archive, Module, Modules, version_of};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What init looks for before it does anything: nobody else has this file.
pub const MARK: &str = "smc-helper-guest";

/// The programs that put volumes together are here, each with the libraries that it needs, and their loader.
pub const PROGRAMS: &str = "programs";
/// The loader of their libraries, there.
pub const LOADER: &str = "ld.so";
/// The programs, and the packages of Debian that have them.
pub const TOOLS: [(&str, &str); 3] = [
    ("lvm", "lvm2"),
    ("mdadm", "mdadm"),
    ("cryptsetup", "cryptsetup-bin"),
];

/// Without these the guest neither reads its disks nor answers.
const DRIVERS: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio_console", "dm_mod"];
/// Whichever of them the kernel has.
const MORE_DRIVERS: [&str; 37] = [
    "crc32c_generic",
    "md_mod",
    "linear",
    "raid0",
    "raid1",
    "raid10",
    "raid456",
    "dm_mirror",
    "dm_snapshot",
    "dm_thin_pool",
    "dm_raid",
    "dm_cache",
    "dm_cache_smq",
    "dm_integrity",
    "dm_writecache",
    "dm_crypt",
    "aes_generic",
    "aesni_intel",
    "xts",
    "cbc",
    "ecb",
    "essiv",
    "sha1_generic",
    "sha256_generic",
    "sha512_generic",
    "sha256",
    "sha512",
    "hmac",
    "cmac",
    "authenc",
    "serpent_generic",
    "twofish_generic",
    "camellia_generic",
    "wp512",
    "rmd160",
    "algif_skcipher",
    "algif_hash",
];

/// Where distributions have the loader of programs.
const LOADERS: [&str; 3] = [
    "lib64/ld-linux-x86-64.so.2",
    "usr/lib64/ld-linux-x86-64.so.2",
    "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
];
const LIBRARY_DIRECTORIES: [&str; 6] = [
    "usr/lib/x86_64-linux-gnu",
    "lib/x86_64-linux-gnu",
    "usr/lib64",
    "lib64",
    "usr/lib",
    "lib",
];
const PROGRAM_DIRECTORIES: [&str; 4] = ["usr/sbin", "sbin", "usr/bin", "bin"];
/// A thread that ends needs it, and no program names it: it is loaded at that moment.
const UNWINDER: &str = "libgcc_s.so.1";

/// Where this program and its libraries are in the guest.
pub const OWN_LIBRARIES: &str = "lib64";
const INSTALL_KERNEL: &str = "install a kernel (Debian: linux-image-amd64), or name one with --kernel, whose modules are in \
    /lib/modules";
/// A kernel's image says its version in its first sectors.
const VERSION_SEARCHED_BYTES: u64 = 128 << 10;

/// A kernel and an initramfs for it.
#[derive(Debug)]
pub struct Supplies {
    /// The kernel's image.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: Vec<u8>,
}

impl Supplies {
    /// Finds everything and makes the initramfs.
    ///
    /// # Errors
    /// Where there is no kernel that fits, or this program cannot be read.
    pub fn gather(means: &Means<'_>) -> anyhow::Result<Self> {
        let (kernel, modules) = kernel(means)?;
        let mut archive = Archive::default();
        for directory in [
            "dev",
            "proc",
            "sys",
            "run",
            "tmp",
            "etc",
            "modules",
            PROGRAMS,
            OWN_LIBRARIES,
        ] {
            archive.directory(directory)?;
        }
        archive.file(MARK, &[])?;
        add_modules(&mut archive, &modules)?;
        add_own(&mut archive)?;
        add_programs(&mut archive, means.root)?;
        Ok(Self {
            kernel,
            initramfs: archive.finish(),
        })
    }
}

fn add_modules(archive: &mut Archive, modules: &[Module]) -> anyhow::Result<()> {
    let order: String = modules
        .iter()
        .map(|module| format!("{}\n", module.name))
        .collect();
    archive.file("modules/order", order.as_bytes())?;
    for module in modules {
        archive.file(&format!("modules/{}", module.name), &module.content)?;
    }
    Ok(())
}

/// This program, with its libraries where its loader looks for them.
fn add_own(archive: &mut Archive) -> anyhow::Result<()> {
    let own = Path::new("/proc/self/exe");
    add(archive, "smc-image", own)?;
    let own = fs::read_link(own).context("find this program")?;
    for (name, path) in libraries(Path::new("/"), &own)? {
        add(archive, &format!("{OWN_LIBRARIES}/{name}"), &path)?;
    }
    let loader = loader(Path::new("/")).context("find the loader of programs")?;
    add(archive, &format!("{OWN_LIBRARIES}/ld-linux-x86-64.so.2"), &loader)
}

/// What the system has of the programs. The guest says which one it lacks if it needs it.
fn add_programs(archive: &mut Archive, root: &Path) -> anyhow::Result<()> {
    let mut needed = BTreeMap::new();
    for (name, _) in TOOLS {
        let Some(program) = first_file(root, &PROGRAM_DIRECTORIES, name) else {
            continue;
        };
        needed.extend(libraries(root, &program)?);
        add(archive, &format!("{PROGRAMS}/{name}"), &program)?;
    }
    if let Some(unwinder) = first_file(root, &LIBRARY_DIRECTORIES, UNWINDER) {
        needed.insert(UNWINDER.to_owned(), unwinder);
    }
    for (name, path) in needed {
        add(archive, &format!("{PROGRAMS}/{name}"), &path)?;
    }
    if let Some(loader) = loader(root) {
        add(archive, &format!("{PROGRAMS}/{LOADER}"), &loader)?;
    }
    Ok(())
}

fn add(archive: &mut Archive, name: &str, path: &Path) -> anyhow::Result<()> {
    let content = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(archive.program(name, &content)?)
}

fn first_file(root: &Path, directories: &[&str], name: &str) -> Option<PathBuf> {
    let paths = directories
        .iter()
        .map(|directory| root.join(directory).join(name));
    paths.into_iter().find(|path| path.is_file())
}

fn loader(root: &Path) -> Option<PathBuf> {
    let paths = LOADERS.iter().map(|path| root.join(path));
    paths.into_iter().find(|path| path.is_file())
}

/// The libraries that a program needs, by the names that it knows them by; none for one that is linked statically.
fn libraries(root: &Path, program: &Path) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let Some(loader) = loader(root) else {
        return Ok(BTreeMap::new());
    };
    let mut command = Command::new(loader);
    if root != Path::new("/") {
        let path: Vec<String> = LIBRARY_DIRECTORIES
            .iter()
            .map(|directory| root.join(directory).display().to_string())
            .collect();
        command.arg("--library-path").arg(path.join(":"));
    }
    let listed = command.arg("--list").arg(program).output();
    let listed = listed.with_context(|| format!("list the libraries of {}", program.display()))?;
    let text = String::from_utf8_lossy(&listed.stdout);
    if let Some(missing) = text.lines().find(|line| line.contains("not found")) {
        return Err(anyhow!("{} lacks {}", program.display(), missing.trim()));
    }
    Ok(text.lines().filter_map(library).collect())
}

/// A line as `libc.so.6 => /lib/libc.so.6 (0x7f00)`.
fn library(line: &str) -> Option<(String, PathBuf)> {
    let (name, rest) = line.trim().split_once(" => ")?;
    let path = rest.rsplit_once(" (").map_or(rest, |(path, _)| path);
    // The loader is added apart.
    let is_plain = !name.contains('/') && path.starts_with('/');
    is_plain.then(|| (name.to_owned(), PathBuf::from(path)))
}

/// A kernel with the drivers that are needed.
fn kernel(means: &Means<'_>) -> anyhow::Result<(PathBuf, Vec<Module>)> {
    if let Some(kernel) = means.kernel {
        let modules = modules_of(means.root, kernel).with_context(|| format!("use {}", kernel.display()));
        return modules.map(|modules| (kernel.to_owned(), modules));
    }
    let mut why = anyhow!("no kernel is installed in {}", means.root.join("boot").display());
    for kernel in installed(means.root) {
        match modules_of(means.root, &kernel) {
            Ok(modules) => return Ok((kernel, modules)),
            Err(error) => why = error.context(format!("use {}", kernel.display())),
        }
    }
    Err(why).advise(INSTALL_KERNEL)
}

fn modules_of(root: &Path, kernel: &Path) -> anyhow::Result<Vec<Module>> {
    let mut start = Vec::new();
    File::open(kernel)?
        .take(VERSION_SEARCHED_BYTES)
        .read_to_end(&mut start)?;
    let version = version_of(&start).context("it is no kernel's image for this processor")?;
    let modules = Modules::open(&root.join("lib/modules").join(version))?;
    Ok(modules.read(&DRIVERS, &MORE_DRIVERS)?)
}

/// The kernels of a system: the one that runs first, then the newest.
fn installed(root: &Path) -> Vec<PathBuf> {
    let running = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let names_in = |directory: &str| {
        let entries = fs::read_dir(root.join(directory));
        let paths = entries.into_iter().flatten().flatten();
        paths.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let is_kernel = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
    };
    let in_boot = names_in("boot").into_iter().filter(is_kernel);
    let beside_modules = names_in("lib/modules")
        .into_iter()
        .map(|path| path.join("vmlinuz"));
    let mut found: Vec<PathBuf> = in_boot
        .chain(beside_modules)
        .filter(|path| path.is_file())
        .collect();
    let made = |path: &Path| path.metadata().and_then(|found| found.modified()).ok();
    found.sort_by_key(|path| {
        let is_running = path.to_string_lossy().contains(&running);
        std::cmp::Reverse((is_running, made(path)))
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_the_loader_lists() {
        let found = library("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f54bb3f3000)").unwrap();
        assert_eq!(found.0, "libc.so.6");
        assert_eq!(found.1, Path::new("/lib/x86_64-linux-gnu/libc.so.6"));
        assert_eq!(library("\tlinux-vdso.so.1 (0x00007ffd2e5f7000)"), None);
        assert_eq!(
            library("\t/lib64/ld-linux-x86-64.so.2 (0x00007f54bb5f4000)"),
            None
        );
        let own = libraries(Path::new("/"), &std::env::current_exe().unwrap()).unwrap();
        assert!(own.contains_key("libc.so.6"), "{own:?}");
    }

    #[test]
    fn a_system_without_a_kernel_is_told_what_to_install() {
        let scratch = testkit::guard::ScratchDir::new("smc-helper").unwrap();
        let means = Means {
            kernel: None,
            root: scratch.path(),
        };
        let error = Supplies::gather(&means).unwrap_err();
        let advice = crate::exit::advice(&error).unwrap_or_default();
        assert!(advice.contains("--kernel"), "{error:#} {advice}");
        let kernel = scratch.file("vmlinuz", b"no kernel").unwrap();
        let means = Means {
            kernel: Some(&kernel),
            root: scratch.path(),
        };
        let error = Supplies::gather(&means).unwrap_err();
        assert!(format!("{error:#}").contains("no kernel's image"), "{error:#}");
    }
}
