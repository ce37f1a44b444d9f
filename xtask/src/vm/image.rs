//! The first file system: busybox, three modules, and a script that puts the host's root below a tmpfs and goes on there.

use std::{fs, path::Path};

use anyhow::Context as _;

use super::kernels::{Kernel, plain_module};

/// What must be loaded before the root can be mounted, where it is not built in.
const MODULES: [&str; 3] = ["virtio_pci", "virtiofs", "overlay"];
/// What busybox does under these names.
const APPLETS: [&str; 9] = ["sh", "cat", "echo", "insmod", "mkdir", "mount", "umount", "poweroff", "switch_root"];
const FOLDERS: [&str; 8] = ["bin", "dev", "host", "m", "new", "proc", "rw", "sys"];

/// Bytes of a tmpfs that takes what the guest writes: objects and journals of one test.
const WRITABLE: &str = "700m";

const REGULAR: u32 = 0o100_755;
const FOLDER: u32 = 0o040_755;
const LINK: u32 = 0o120_777;

/// Writes the image; `next` is the host's path of the script that becomes the guest's first process.
pub(crate) fn write(kernel: &Kernel, busybox: &Path, next: &Path, dest: &Path) -> anyhow::Result<()> {
    let mut archive = Archive::default();
    for folder in FOLDERS {
        archive.add(folder, FOLDER, &[]);
    }
    let program = fs::read(busybox).with_context(|| format!("busybox at {}", busybox.display()))?;
    archive.add("bin/busybox", REGULAR, &program);
    for applet in APPLETS {
        archive.add(&format!("bin/{applet}"), LINK, b"busybox");
    }
    let mut load: Vec<String> = Vec::new();
    for name in MODULES {
        for path in kernel.module(name)? {
            let file = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if !load.contains(&file) {
                archive.add(&format!("m/{file}"), REGULAR, &plain_module(&path)?);
                load.push(file);
            }
        }
    }
    archive.add("init", REGULAR, init(&load, next).as_bytes());
    fs::write(dest, archive.finish()).with_context(|| dest.display().to_string())
}

fn init(load: &[String], next: &Path) -> String {
    let load: Vec<String> = load.iter().map(|m| format!("insmod /m/{m} || echo 'VM: cannot load {m}'\n")).collect();
    let load = load.concat();
    format!(
        "#!/bin/sh\n\
         fail() {{ echo \"VM: $1\"; poweroff -f; }}\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n\
         {load}\
         mount -t virtiofs -o ro root /host || fail 'cannot mount the root'\n\
         mount -t tmpfs -o size={WRITABLE} tmp /rw\n\
         mkdir /rw/upper /rw/work\n\
         mount -t overlay -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work root /new || fail 'cannot lay the overlay'\n\
         umount /proc /sys /dev\n\
         exec switch_root /new /bin/bash {}\n",
        next.display()
    )
}

/// A `cpio` archive in the one form that kernels read ("newc"; `Documentation/driver-api/early-userspace`).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let links = 1;
        // Magic; inode, mode, owner, group, links, time, size, four device numbers, length of the name, no checksum.
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_aligned_and_ends_with_its_trailer() {
        let mut archive = Archive::default();
        archive.add("a", REGULAR, b"12345");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.starts_with(b"070701"));
        // Header of 110 bytes, the name, and zeros up to a multiple of four.
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(&bytes[112..117], b"12345");
        assert!(bytes.windows(10).any(|w| w == b"TRAILER!!!"));
    }
}
