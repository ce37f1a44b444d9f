//! Before anything is captured: the state directory, the targets, the kernel.

use std::{path::Path, sync::Arc, time::Duration};

use flowlog_control::api::model::date;
use flowlog_host::{clock, lock};
use flowlog_kernel::{
    Kernel, Options, Pins,
    netdev::{self, Namespaces, NetDevError, netns},
};
use flowlog_model::{
    CaptureSpec, amount,
    interface::{Elsewhere, Selector, names},
    xdp::XdpLevel,
};
use flowlog_pipeline::{
    capture::Setup,
    disk::{Filesystem, real::Disk},
    journal::{
        self, Recovered,
        entry::{FORMAT, Head},
    },
    spool::Spool,
    upload::Bucket,
};

use super::{
    Capture,
    error::{AgentError, system},
    kernel_source::KernelSource,
    service::Service,
    signals::Stop,
};
use crate::config::Config;

/// The state directory, locked as long as the second part lives: two agents would deliver each other's files.
pub(super) fn state_dir(config: &Config) -> Result<(Arc<dyn Filesystem>, std::fs::File), AgentError> {
    let failed = |source| AgentError::StateDir { path: config.state_dir.clone(), source };
    let disk = Disk::open(&config.state_dir).map_err(failed)?;
    let lock = lock::take(&config.state_dir).map_err(failed)?;
    Ok((Arc::new(disk), lock))
}

pub(super) fn open_spool(config: &Config, fs: &Arc<dyn Filesystem>) -> Result<Spool, AgentError> {
    let (spool, left) = Spool::open(fs.clone(), config.spool)?;
    if left.partial > 0 {
        tracing::info!(files = left.partial, "removed files that were being written when the last agent ended");
    }
    for name in left.foreign {
        tracing::warn!(name, "this is not the spool's: left alone");
    }
    Ok(spool)
}

/// Options that make no store are mistakes of whoever wrote them. Whether a store is there, and takes objects, is not asked here.
pub(super) fn check_targets(config: &Config) -> Result<(), AgentError> {
    let by_selection = config.manage.iter().flat_map(|m| &m.templates.all).map(|t| &t.rule.target);
    for target in config.captures.iter().map(|c| &c.rule.target).chain(by_selection) {
        Bucket::check(&target.location, &config.s3)
            .map_err(|source| AgentError::Target { target: target.to_string(), source })?;
    }
    Ok(())
}

/// What must fit into the state directory before the programs are loaded, which takes a second of computing: the journal's first
/// bytes, with room to spare.
const ROOM_BYTES: usize = 64 << 10;

/// Whether anything fits into the state directory, found out in the cheapest way.
pub(super) fn ensure_room(state_dir: &Path, fs: &dyn Filesystem) -> Result<(), AgentError> {
    const NAME: &str = "room.partial";
    let write = || {
        let mut file = fs.create("", NAME)?;
        file.append(&vec![0; ROOM_BYTES])?;
        file.sync()
    };
    let written = write();
    let _ = fs.remove("", NAME);
    written.map_err(|source| AgentError::StateDir { path: state_dir.to_owned(), source })
}

/// Pause before the state directory is tried again.
const ROOM_RETRY: Duration = Duration::from_secs(2);

/// Does what needs room on the disk, as soon as there is; `None`: somebody asked to stop first. The kernel goes on counting meanwhile
/// if it did before.
pub(super) async fn when_there_is_room<T>(
    stop: &mut Stop,
    service: &Service,
    mut work: impl FnMut() -> Result<T, AgentError>,
) -> Result<Option<T>, AgentError> {
    let mut said = false;
    loop {
        match work() {
            Err(error) if error.is_full_disk() => {
                if !std::mem::replace(&mut said, true) {
                    tracing::error!(%error, "the state directory is full; will try again");
                }
                service.start_waits("waiting for room in the state directory");
            }
            done => return done.map(Some),
        }
        tokio::select! {
            () = stop.asked() => return Ok(None),
            () = tokio::time::sleep(ROOM_RETRY) => {}
        }
    }
}

/// When the first objects will be there; `None`: no interface is captured so far.
pub(super) fn first_object(capture: &Capture) -> Option<String> {
    let end = capture.first_end_secs()?;
    let left = amount::duration(end.saturating_sub(clock::now().wall.secs()).max(0));
    Some(format!("the first window ends at {}, in {left}: then the first object is there", date(end)))
}

/// Every interface that is not waited for must be there.
pub(super) fn check_interfaces(config: &Config) -> Result<(), AgentError> {
    let mut devices = netdev::all()?;
    let named = config.captures.iter().filter_map(|c| c.interface.netns.clone()).collect();
    let Elsewhere { devices: more, namespaces } = Namespaces::default().interfaces(&named, false);
    devices.extend(more);
    let missing = |c: &&CaptureSpec| !c.wait && c.interface.find(&devices, None, &namespaces).is_none();
    let Some(capture) = config.captures.iter().find(missing) else { return Ok(()) };
    let Selector { by, netns } = &capture.interface;
    let inum = match netns {
        Some(netns) => {
            *namespaces.get(netns).ok_or_else(|| NetDevError::no_namespace(netns, "make it first, or use `--wait`"))?
        }
        None => netns::own().map_err(system("find the network namespace"))?.inum,
    };
    devices.retain(|d| d.netns.inum == inum);
    let netns =
        netns.as_ref().map_or_else(|| "this network namespace".to_owned(), |n| format!("network namespace `{n}`"));
    Err(NetDevError::NotFound { name: by.to_string(), netns, others: names(&devices) }.into())
}

/// What the capture is told.
pub(super) fn setup(config: &Config) -> Setup {
    let Config { captures, node_id, flows_max, .. } = config;
    Setup { captures: captures.clone(), node_id: node_id.clone(), flows_max: *flows_max }
}

/// Loads the programs, or takes over those that are pinned; and says which kernel state the journal is to belong to.
pub(super) fn open_kernel(config: &Config, found: &Recovered) -> Result<(KernelSource, Head), AgentError> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(system("read the boot id"))?;
    let boot_id = boot_id.trim().to_owned();
    refuse_other_pins(config, found.head.as_ref(), &boot_id)?;
    let netns = netns::own().map_err(system("find the network namespace"))?.inum;
    let options =
        Options { sizes: config.sizes, netns_inum: netns, moves: config.reasons.clone(), mark: config.marks.mark };
    let pins = config.pin_dir.as_ref().map(|dir| Pins::open(dir, config.sizes)).transpose()?;
    let mut kernel = Kernel::open(&options, pins)?;
    if config.may_want_translations() && !kernel.knows_connections() {
        tracing::warn!(
            "this kernel has no connection tracking: what is translated will not be known; load the module nf_conntrack, and start again"
        );
    }
    kernel.inherit_wraps(config.xdp == XdpLevel::Wrap)?;
    let ring = kernel.take_ring()?;
    let ring_id = ring.id()?;
    let begun = clock::now();
    let head = Head { format: FORMAT, boot_id, ring_id, pin_dir: config.pin_dir.clone(), begun };
    Ok((
        KernelSource {
            kernel,
            ring,
            follow_namespaces: config.follow_namespaces,
            restore_order: config.restore_order,
            xdp_level: config.xdp,
            namespaces: Namespaces::default(),
            told: None,
        },
        head,
    ))
}

/// A journal whose ring is pinned elsewhere must not be taken for one whose ring is gone.
fn refuse_other_pins(config: &Config, head: Option<&Head>, boot_id: &str) -> Result<(), AgentError> {
    let Some(Head { boot_id: written, pin_dir: Some(dir), .. }) = head else { return Ok(()) };
    if written != boot_id || config.pin_dir.as_ref() == Some(dir) || !dir.exists() {
        return Ok(());
    }
    Err(AgentError::OtherPins { dir: dir.clone() })
}

/// Re-reads the journal of a state directory.
pub(super) fn recover(fs: &dyn Filesystem) -> Result<Recovered, AgentError> {
    let found = journal::recover(fs)?;
    if found.torn_bytes > 0 {
        tracing::warn!(bytes = found.torn_bytes, "the journal had a torn end: cut off");
    }
    for name in &found.foreign {
        tracing::warn!(name, "this is not the journal's: left alone");
    }
    Ok(found)
}

/// For the test that shows the filter of system calls at work: tries to run another program, and says what came of it.
#[cfg(feature = "faults")]
pub(super) fn try_to_execute() {
    if flowlog_host::fault::io("execute").is_err() {
        let tried = std::process::Command::new("/bin/true").status();
        tracing::info!(?tried, "tried to run another program");
    }
}
