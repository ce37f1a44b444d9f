//! P3 on a machine that loses power: a real ext4, whose disk is copied at moments of its life. Whatever the copy
//! holds, an agent that starts on it delivers what was acknowledged, twice nothing, and says when it did not look.

use std::{
    path::Path,
    process::{Command, Output},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use integration::{agent::binary, net::sh, node::Node, oracle::Oracle, rows::Objects};
use rustix::process::Signal;

/// Copies of the disk.
const MOMENTS: u32 = 12;
/// A record is acknowledged when it is in the journal: its window (one second) and the agent's tick (two) later, and
/// some for a busy machine.
const ACKNOWLEDGED_AFTER: Duration = Duration::from_secs(5);

/// How often what was sent is noted.
const SAMPLE: Duration = Duration::from_millis(20);

struct Mount(std::path::PathBuf);

impl Mount {
    fn new(image: &Path, at: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(at)?;
        sh(&format!("mount -o loop,data=ordered {} {}", image.display(), at.display()))?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = sh(&format!("umount -l {}", self.0.display()));
    }
}

/// Detaches with another state directory. `copy` takes the place of the objects, for this one process.
fn detach(node: &Node, state: &Path, copy: &Path) -> Output {
    let script = format!(
        "mount --bind {} {} && {} detach --state-dir {} --pin-dir {}",
        copy.display(),
        node.objects().display(),
        binary().display(),
        state.display(),
        node.pins().display()
    );
    let args = ["netns", "exec", node.pair.a.name(), "unshare", "-m", "sh", "-c", &script];
    Command::new("ip").args(args).output().unwrap()
}

#[test]
fn after_a_power_cut_at_any_moment_what_was_acknowledged_is_there_once_and_the_gap_is_told() {
    let node = Node::new(&["--window", "1", "--cache-slots", "256", "--refused-slots", "256"]).unwrap();
    let dir = node.dir.path();
    let objects = node.objects();
    let image = dir.join("disk");
    std::fs::File::create(&image).unwrap().set_len(96 << 20).unwrap();
    sh(&format!("mkfs.ext4 -q {}", image.display())).unwrap();
    let mount = Mount::new(&image, &node.state()).unwrap();
    let mut agent = node.spawn_with(&["--no-pin"], &[]).unwrap();
    agent.wait_for("capturing").unwrap();
    let mut moments = Vec::new();
    let oracle = Oracle::watch(&node.pair, 2_000, Duration::from_millis(4), |sent| {
        // Only while the agent runs: time in which it is stopped does not count for it.
        let mut history: Vec<u64> = Vec::new();
        let wait = |until: Duration, history: &mut Vec<u64>| {
            let start = Instant::now();
            while start.elapsed() < until {
                history.push(sent.load(Ordering::Relaxed));
                std::thread::sleep(SAMPLE);
            }
        };
        wait(ACKNOWLEDGED_AFTER + Duration::from_secs(1), &mut history);
        for n in 0..MOMENTS {
            // Steps of different lengths: every part of a window has its turn.
            wait(Duration::from_millis(u64::from(137 * (n + 1) % 700)), &mut history);
            agent.signal(Signal::STOP);
            let ago = usize::try_from(ACKNOWLEDGED_AFTER.as_millis() / SAMPLE.as_millis())?;
            let safe = history.len().checked_sub(ago).and_then(|i| history.get(i)).copied().unwrap_or(0);
            sh(&format!("cp -r {} {}", objects.display(), dir.join(format!("objects-{n}")).display()))?;
            sh(&format!("cp --sparse=always {} {}", image.display(), dir.join(format!("disk-{n}")).display()))?;
            moments.push((n, safe));
            agent.signal(Signal::CONT);
        }
        Ok(())
    })
    .unwrap();
    agent.end().unwrap();
    drop(mount);
    for (n, safe) in moments {
        let copy = dir.join(format!("objects-{n}"));
        let at = dir.join(format!("mnt-{n}"));
        let _mount = Mount::new(&dir.join(format!("disk-{n}")), &at).unwrap();
        for _ in 0..2 {
            let out = detach(&node, &at, &copy);
            let log = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(out.status.success() && !log.contains("ERROR"), "moment {n}: {log}");
        }
        let landed = Objects::below(&copy).unwrap();
        let verdict = oracle.compare(&landed);
        let found = landed.total().0;
        eprintln!("moment {n}: {safe} acknowledged, {found} found");
        assert_eq!((verdict.duplicated, verdict.unexpected), (0, 0), "moment {n}: {:?}", verdict.examples);
        assert!(found >= safe, "moment {n}: {found} found, {safe} acknowledged");
        assert!(landed.rows.iter().any(|r| r.skip == "gap"), "moment {n}: no gap");
    }
}
