//! Hooks: tcx links, clsact filters, XDP; and the verdict programs.
//!
//! Our TC programs go first, so that they see what is on the wire, whatever other programs do later. They return
//! `TCX_NEXT`, so everything after them still runs.

use std::fmt;

use aya::{
    programs::{
        BtfTracePoint, LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact, qdisc_detach_program},
        tp_btf::BtfTracePointLink,
        xdp::XdpLink,
    },
    util::KernelVersion,
};

use super::{
    KernelError,
    load::{Kernel, program},
};
use crate::rule::Direction;

/// Priority of our clsact filters: the first there is.
const CLSACT_PRIORITY: u16 = 1;
/// Handle of our clsact filters, so that they can be told from others at the same priority.
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0xf10e);

/// How a direction of an interface is hooked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    /// TC, as a tcx link (Linux 6.6), else as a clsact filter.
    Tc,
    /// TC, as a tcx link only.
    Tcx,
    /// TC, as a clsact filter only.
    Clsact,
    /// XDP in the driver, else generic. Ingress only.
    Xdp,
}

/// What an attach came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// tcx link.
    Tcx,
    /// clsact filter.
    Clsact,
    /// XDP, run by the driver.
    XdpNative,
    /// XDP, run by the stack: the driver has none.
    XdpGeneric,
}

impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::XdpNative => "xdp (native)",
            Self::XdpGeneric => "xdp (generic)",
        })
    }
}

/// What holds the programs in place; each detaches when dropped.
#[derive(Default)]
pub(super) struct Links {
    tc: Vec<SchedClassifierLink>,
    xdp: Vec<XdpLink>,
    verdict: Vec<BtfTracePointLink>,
}

/// Whether the running kernel is `major.minor` or newer.
pub(super) fn kernel_at_least(major: u8, minor: u8) -> bool {
    KernelVersion::current().is_ok_and(|v| v >= KernelVersion::new(major, minor, 0))
}

/// Whether this kernel has tcx links.
#[must_use]
pub fn has_tcx() -> bool {
    kernel_at_least(6, 6)
}

impl Kernel {
    /// Hooks one direction of an interface.
    ///
    /// # Errors
    /// [`KernelError::Attach`] with the kernel's words; nothing stays attached then.
    pub fn attach(&mut self, interface: &str, direction: Direction, kind: HookKind) -> Result<Attached, KernelError> {
        match kind {
            HookKind::Xdp if direction == Direction::Ingress => self.attach_xdp(interface),
            HookKind::Tcx => self.attach_tcx(interface, direction),
            // XDP has no egress: TC does it.
            HookKind::Tc | HookKind::Xdp if has_tcx() => self.attach_tcx(interface, direction),
            HookKind::Tc | HookKind::Xdp | HookKind::Clsact => self.attach_clsact(interface, direction),
        }
    }

    fn attach_tcx(&mut self, interface: &str, direction: Direction) -> Result<Attached, KernelError> {
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        self.attach_tc(interface, direction, order, "tcx")?;
        Ok(Attached::Tcx)
    }

    fn attach_clsact(&mut self, interface: &str, direction: Direction) -> Result<Attached, KernelError> {
        let (name, attach_type) = tc_program(direction);
        // Exists already, or cannot be made: the attach below tells.
        let _ = qdisc_add_clsact(interface);
        // Filters outlive a killed agent: take away one of ours that was left behind.
        let _ = qdisc_detach_program(interface, attach_type, name);
        let options = NlOptions { priority: CLSACT_PRIORITY, handle: CLSACT_HANDLE, classid: None };
        self.attach_tc(interface, direction, TcAttachOptions::Netlink(options), "clsact")?;
        Ok(Attached::Clsact)
    }

    fn attach_tc(
        &mut self,
        interface: &str,
        direction: Direction,
        options: TcAttachOptions,
        hook: &str,
    ) -> Result<(), KernelError> {
        let (name, attach_type) = tc_program(direction);
        let program: &mut SchedClassifier = program(&mut self.ebpf, name)?;
        let link = program
            .attach_with_options(interface, attach_type, options)
            .and_then(|id| program.take_link(id))
            .map_err(|e| attach_error(interface, &format!("{hook} {direction}"), &e))?;
        self.links.tc.push(link);
        Ok(())
    }

    fn attach_xdp(&mut self, interface: &str) -> Result<Attached, KernelError> {
        let program: &mut Xdp = program(&mut self.ebpf, "flowlog_xdp")?;
        let mut native_problem = None;
        for (mode, attached) in [(XdpMode::Driver, Attached::XdpNative), (XdpMode::Skb, Attached::XdpGeneric)] {
            match program.attach(interface, mode).and_then(|id| program.take_link(id)) {
                Ok(link) => {
                    self.links.xdp.push(link);
                    return Ok(attached);
                }
                Err(e) => {
                    native_problem.get_or_insert(attach_error(interface, "xdp", &e));
                }
            }
        }
        Err(match native_problem {
            Some(KernelError::Attach { interface, hook, problem }) => {
                let problem = format!("{problem}; an interface takes one XDP program: remove the other one, or use tc");
                KernelError::Attach { interface, hook, problem }
            }
            _ => KernelError::Refused { action: "attach xdp".to_owned(), problem: "no mode worked".to_owned() },
        })
    }

    /// Attaches the verdict programs. The order matters: see `flowlog-ebpf/src/bin/flowlog/verdict.rs`.
    pub fn attach_verdict(&mut self) -> Result<(), KernelError> {
        for name in ["flowlog_verdict", "flowlog_verdict_nested"] {
            let program: &mut BtfTracePoint = program(&mut self.ebpf, name)?;
            let link = program
                .attach()
                .and_then(|id| program.take_link(id))
                .map_err(|e| KernelError::from_chain("attach to the tracepoint kfree_skb", &e))?;
            self.links.verdict.push(link);
        }
        Ok(())
    }

    /// Takes all hooks away; maps and their contents stay.
    pub fn detach(&mut self) {
        // Hooks first: a packet that dies after its hook is gone is then merely not seen.
        self.links.tc.clear();
        self.links.xdp.clear();
        self.links.verdict.clear();
    }
}

fn tc_program(direction: Direction) -> (&'static str, TcAttachType) {
    match direction {
        Direction::Ingress => ("flowlog_tc_ingress", TcAttachType::Ingress),
        Direction::Egress => ("flowlog_tc_egress", TcAttachType::Egress),
    }
}

fn attach_error(interface: &str, hook: &str, error: &(dyn std::error::Error + 'static)) -> KernelError {
    match KernelError::from_chain(format!("attach {hook} to `{interface}`"), error) {
        KernelError::Refused { problem, .. } => {
            KernelError::Attach { interface: interface.to_owned(), hook: hook.to_owned(), problem }
        }
        other => other,
    }
}
