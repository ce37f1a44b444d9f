//! Control groups: one whose programs refuse UDP to port 7, with a process in it that has a socket; one with a limit of memory.
#![allow(unsafe_code, reason = "`pre_exec`: a socket belongs to the cgroup of the process that opens it")]

use std::{
    fs::File,
    net::UdpSocket,
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::PerCpuArray,
    programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType},
};

use crate::{
    net::{Netns, sh},
    others::OBJECT,
};

/// See the module's head. Everything goes on drop.
pub struct Refusing {
    ebpf: Ebpf,
    mount: tempfile::TempDir,
    path: PathBuf,
    inside: Vec<Child>,
}

impl Refusing {
    /// Makes a cgroup and attaches the program to one side of it.
    ///
    /// # Errors
    /// Without root, or if the kernel has no second version of cgroups.
    pub fn new(side: CgroupSkbAttachType) -> anyhow::Result<Self> {
        let mount = tempfile::tempdir()?;
        sh(&format!("mount -t cgroup2 none {}", mount.path().display()))?;
        let unique = mount.path().file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let path = mount.path().join(format!("flowlog-test-{unique}"));
        let mut made = Self { ebpf: Ebpf::load(OBJECT)?, mount, path, inside: Vec::new() };
        std::fs::create_dir(&made.path)?;
        let program = made.ebpf.program_mut("cgroup_drop").ok_or_else(|| anyhow::anyhow!("no cgroup_drop"))?;
        let program: &mut CgroupSkb = program.try_into()?;
        program.load()?;
        program.attach(File::open(&made.path)?, side, CgroupAttachMode::Single)?;
        Ok(made)
    }

    /// Starts a process inside that binds a UDP socket to `address` in `ns`, and sends `count` datagrams of `payload`
    /// bytes to `to` from it. The socket stays open.
    ///
    /// # Errors
    /// If the address is not there.
    pub fn socket(&mut self, ns: &Netns, address: &str, to: &str, count: usize, payload: usize) -> anyhow::Result<()> {
        let procs = self.path.join("cgroup.procs");
        let address = address.to_owned();
        let to = to.to_owned();
        let work = move || {
            std::fs::write(&procs, "0")?;
            let socket = UdpSocket::bind(&address)?;
            for _ in 0..count {
                // EPERM: the program has refused it.
                let _ = socket.send_to(&vec![0; payload], &to);
            }
            // SAFETY: a copy of an open descriptor, which stays open in the program that is started next.
            let kept = unsafe { libc::dup(socket.as_raw_fd()) };
            if kept < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        };
        let mut command = Command::new("sleep");
        // SAFETY: between fork and exec only system calls are made, and memory is taken from an allocator that
        // survives a fork (glibc's).
        unsafe { command.arg("600").pre_exec(work) };
        self.inside.push(ns.run(|| command.spawn())?);
        Ok(())
    }

    /// Packets that the program has refused.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn refused(&self) -> anyhow::Result<u64> {
        let map = self.ebpf.map("COUNTERS").ok_or_else(|| anyhow::anyhow!("no map"))?;
        let map: PerCpuArray<_, u64> = map.try_into()?;
        Ok(map.get(&1, 0)?.iter().sum())
    }
}

impl Drop for Refusing {
    fn drop(&mut self) {
        for child in &mut self.inside {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir(&self.path);
        let _ = sh(&format!("umount {}", self.mount.path().display()));
    }
}

/// A group (version 1 or 2) with a limit of memory, or below one that has it.
pub struct Memory {
    limited: PathBuf,
    inner: Option<PathBuf>,
    file: &'static str,
}

impl Memory {
    /// Makes one; with `above`, the processes' group has no limit and the one above it has.
    ///
    /// # Errors
    /// Without root, or where memory is not counted.
    pub fn new(bytes: u64, above: bool) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let v2 = Path::new("/sys/fs/cgroup");
        let old = v1.is_dir();
        let name = format!("flowlog-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let limited = if old { v1 } else { v2 }.join(name);
        std::fs::create_dir(&limited)?;
        let file = if old { "memory.limit_in_bytes" } else { "memory.max" };
        let mut made = Self { limited, inner: None, file };
        std::fs::write(made.limit(), bytes.to_string())?;
        if above {
            if !old {
                std::fs::write(made.limited.join("cgroup.subtree_control"), "+memory")?;
            }
            let inner = made.limited.join("inner");
            std::fs::create_dir(&inner)?;
            made.inner = Some(inner);
        }
        Ok(made)
    }

    /// The same command, whose process is in the group before it is anything else. (A shell moves itself there: network namespaces hide
    /// the group from what runs in them.)
    #[must_use]
    pub fn admit(&self, command: &Command) -> Command {
        let group = self.inner.as_ref().unwrap_or(&self.limited);
        let mut shell = Command::new("sh");
        let script = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", group.display());
        shell.args(["-c", &script, "sh"]).arg(command.get_program()).args(command.get_args());
        shell
    }

    /// The file with the limit.
    #[must_use]
    pub fn limit(&self) -> PathBuf {
        self.limited.join(self.file)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Its processes have ended, but the kernel may still be counting.
        for group in self.inner.iter().chain([&self.limited]) {
            for _ in 0..50 {
                if std::fs::remove_dir(group).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}
