//! QEMU and the file server beside it; both end with the guard that holds them.

use std::{
    env, fs,
    io::{Read, Write as _},
    os::{
        fd::OwnedFd,
        unix::{net::UnixListener, process::ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use super::{
    Arch,
    job::{Console, Test},
    kernels::Kernel,
};

/// Processors of a guest: verdicts, sweeps and rings are about more than one.
const CPUS: &str = "2";
const MEMORY_MIB: u32 = 1_536;
/// The benchmark has a million flows in each of its tables.
const COUNTING_MEMORY_MIB: u32 = 4_096;
/// A guest that says nothing for so long has hung: the longest test takes two minutes on an emulated processor.
const SILENCE_MAX: Duration = Duration::from_mins(6);
/// Enough of a console for a kernel's last trace.
const LAST_LINES: usize = 60;
/// Where Debian puts the file server: a part of QEMU until bookworm, a package of its own since.
const FILE_SERVERS: [&str; 3] = ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"];

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Whoever runs the guest's processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accelerator {
    Kvm,
    Tcg,
    /// One processor, whose clock is the instructions it has executed: one a nanosecond.
    Counting,
}

pub(crate) struct Boot<'a> {
    pub kernel: &'a Kernel,
    pub arch: Arch,
    pub accelerator: Accelerator,
    pub initrd: &'a Path,
    /// What the guest sees as its root, and cannot change.
    pub root: &'a Path,
    pub log: PathBuf,
    pub time_max: Duration,
}

/// What came of a boot.
pub(crate) struct Ran {
    pub console: Console,
    /// The signal that ended QEMU: of the emulator or of this machine, and nothing that a guest can do.
    pub crash: Option<i32>,
}

/// How a guest ended.
enum Ended {
    /// By itself; a kernel that panics switches the machine off.
    Off(ExitStatus),
    /// It had to be ended.
    Stuck(&'static str),
}

/// The file server, if there is one.
pub(crate) fn file_server() -> Option<PathBuf> {
    FILE_SERVERS.iter().map(PathBuf::from).find(|p| p.is_file())
}

/// A process that ends with this.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Boot<'_> {
    /// Boots, and reads the console until the guest is off. Every test is told as it ends. If the guest's script was never
    /// reached, nothing has been told; if QEMU crashed, not the test that was running.
    pub(crate) fn run(&self, mut tell: impl FnMut(Test)) -> anyhow::Result<Ran> {
        let socket = Socket::new()?;
        let _server = socket.serve(self.root)?;
        let mut qemu = Guard(self.qemu(&socket.path).spawn().context("cannot start QEMU")?);
        let output = qemu.0.stdout.take().context("QEMU's output")?;
        let lines = follow(output, &self.log)?;
        let mut console = Console::new();
        let end = Instant::now() + self.time_max;
        let ended = loop {
            let patience = SILENCE_MAX.min(end.saturating_duration_since(Instant::now()));
            match lines.recv_timeout(patience) {
                Ok(line) => console.line(&line).into_iter().for_each(&mut tell),
                Err(RecvTimeoutError::Disconnected) => break Ended::Off(qemu.0.wait()?),
                Err(RecvTimeoutError::Timeout) if Instant::now() >= end => break Ended::Stuck("out of time"),
                Err(RecvTimeoutError::Timeout) => break Ended::Stuck("the guest hung"),
            }
        };
        drop(qemu);
        // The name of a test comes before its result, in a line that only now is whole.
        lines.iter().filter_map(|line| console.line(&line)).for_each(&mut tell);
        let (why, crash) = match ended {
            Ended::Off(status) => (format!("the guest died; QEMU: {status}"), status.signal()),
            Ended::Stuck(why) => (why.to_owned(), None),
        };
        if let Some(test) = console.ends(&why).filter(|_| console.booted) {
            let release = &self.kernel.release;
            println!("{release} ended too early: {why}. Its console's last lines:\n{}", last_words(&self.log));
            if crash.is_none() {
                tell(test);
            }
        }
        Ok(Ran { console, crash })
    }

    fn qemu(&self, socket: &Path) -> Command {
        let mut command = Command::new(self.arch.qemu());
        match (self.accelerator, self.arch) {
            (Accelerator::Kvm, _) => command.args(["-accel", "kvm", "-cpu", "host"]),
            (Accelerator::Tcg, Arch::X86) => command.args(["-accel", "tcg,thread=multi", "-cpu", "max"]),
            (Accelerator::Counting, _) => {
                command.args(["-accel", "tcg,thread=single", "-cpu", "max", "-icount", "shift=0,sleep=off"])
            }
            // `max` costs pointer authentication, which is slow to emulate.
            (Accelerator::Tcg, Arch::Arm) => command.args(["-accel", "tcg,thread=multi", "-cpu", "cortex-a72"]),
        };
        if self.arch == Arch::Arm {
            command.args(["-machine", "virt"]);
        }
        let console = self.arch.console();
        let (cpus, memory_mib) = match self.accelerator {
            Accelerator::Counting => ("1", COUNTING_MEMORY_MIB),
            Accelerator::Kvm | Accelerator::Tcg => (CPUS, MEMORY_MIB),
        };
        command
            .args(["-smp", cpus, "-m", &memory_mib.to_string()])
            // The file server reads and writes the guest's memory.
            .args(["-object", &format!("memory-backend-memfd,id=mem,size={memory_mib}M,share=on")])
            .args(["-numa", "node,memdev=mem"])
            .args(["-chardev", &format!("socket,id=fs,path={}", socket.display())])
            .args(["-device", "vhost-user-fs-pci,chardev=fs,tag=root"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"])
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(self.initrd)
            // An emulated timer may be late on a busy machine: kernels that test theirs would give up.
            .args(["-append", &format!("console={console} quiet panic=-1 mitigations=off no_timer_check")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        command
    }
}

/// A socket that is listened on before anybody starts. Its path is short: the kernel takes 108 bytes.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    fn new() -> anyhow::Result<Self> {
        let name = format!("flowlog-vm-{}-{}.sock", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = env::temp_dir().join(name);
        let listener = UnixListener::bind(&path).with_context(|| path.display().to_string())?;
        Ok(Self { listener, path })
    }

    /// Serves `root` there, until QEMU goes away.
    fn serve(&self, root: &Path) -> anyhow::Result<Guard> {
        let program = file_server().context("there is no virtiofsd")?;
        let root = root.display();
        let mut command = Command::new(&program);
        if program.starts_with("/usr/lib/qemu") {
            command.args(["-o", &format!("source={root}"), "-o", "cache=always", "-o", "sandbox=chroot"]);
            command.args(["-o", "log_level=err"]);
        } else {
            command.arg(format!("--shared-dir={root}")).args(["--cache=always", "--sandbox=chroot", "--readonly"]);
            command.arg("--log-level=error");
        }
        let listener: OwnedFd = self.listener.try_clone()?.into();
        command.args(["--thread-pool-size=2", "--fd=0"]).stdin(listener).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Guard(command.spawn().with_context(|| program.display().to_string())?))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Lines of the console, which also go into the log. The last one may have no end.
fn follow(mut output: impl Read + Send + 'static, log: &Path) -> anyhow::Result<Receiver<String>> {
    let mut log = fs::File::create(log).with_context(|| log.display().to_string())?;
    let (send, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        let mut line = Vec::new();
        while let Ok(n @ 1..) = output.read(&mut buffer) {
            let _ = log.write_all(&buffer[..n]);
            for byte in &buffer[..n] {
                if *byte == b'\n' {
                    let whole = String::from_utf8_lossy(&std::mem::take(&mut line)).into_owned();
                    let _ = send.send(whole);
                } else {
                    line.push(*byte);
                }
            }
        }
        let _ = send.send(String::from_utf8_lossy(&line).into_owned());
    });
    Ok(lines)
}

/// The end of a console: what a kernel says as it dies.
fn last_words(log: &Path) -> String {
    let text = fs::read(log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().map(|line| format!("    {}", line.trim_end())).collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

/// Fails with what to install if a guest cannot be started here.
pub(crate) fn ensure_possible(arch: Arch) -> anyhow::Result<()> {
    ensure!(crate::util::has(arch.qemu()), "{} is missing", arch.qemu());
    ensure!(file_server().is_some(), "virtiofsd is missing");
    Ok(())
}
