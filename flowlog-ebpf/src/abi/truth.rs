//! Witness counters: what hooks and verdicts did with every packet.

/// Packets and layer-3 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets as on the wire (a GSO packet counts its segments).
    pub packets: u64,
    /// Bytes as on the wire, without link header and VLAN tags.
    pub bytes: u64,
}

/// What a hook did with every frame it saw, for one direction. Written only by the hook programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HookTruth {
    /// Every frame, bumped before anything that can fail.
    pub seen: Count,
    /// Of these: not IP (ARP, LLDP, …); never a flow.
    pub non_ip: Count,
    /// Of these: IP that cannot be parsed (truncated, bad header length, header chain too long).
    pub malformed: Count,
    /// Of these: the ring was full, so the packet is in no record.
    pub lost: Count,
}

/// What the verdict program did with every refused packet, for one direction. Written only by that program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerdictTruth {
    /// All refused packets. The other counters are parts of this one, up to `late`.
    pub refused: Count,
    /// Of these: a hook had counted it (in `HookTruth::seen` of the same window).
    pub seen: Count,
    /// Of these: the ring was full; no record, but taken out of its flow where it was in one.
    pub lost: Count,
    /// Of these: the ring was full and the packet is still in a PASSED record.
    pub lost_counted: Count,
    /// Of these: the ring was full, and had been when the packet passed the hook: it is in `HookTruth::lost`.
    pub lost_twice: Count,
    /// Of these: refused after the window of its hook count was closed.
    pub late: Count,
    /// Not refused as far as could be shown, and not known to be accepted: the buffer that died may or may not have been all
    /// there was of the packet. In none of the others.
    pub unknown: Count,
    /// Accepted, in a record of this window, and died on the way ([`class::LOST`](super::class::LOST)).
    pub died: Count,
    /// Of these: the ring was full; no record says so.
    pub died_untold: Count,
    /// Died on the way after the window of its record was closed. In none of the others.
    pub died_late: Count,
}

/// What hooks have counted of one interface and epoch on one CPU: at [`Cpu::hooked`](super::Cpu::hooked)` + id * EPOCHS + epoch % EPOCHS` in the
/// `HOOKED` array, whose memory begins with a page: a direction is a cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hooked {
    /// Indexed by direction: [`INGRESS`](super::INGRESS), [`EGRESS`](super::EGRESS).
    pub hook: [HookTruth; 2],
}

/// What verdicts have counted of one interface and epoch on one CPU: at `id * EPOCHS + epoch % EPOCHS` in the `JUDGED` array.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// By direction, then by whether the program had the CPU's caches to itself: one that has interrupted another
    /// counts into a set of its own, so that no addition is lost.
    pub verdict: [[VerdictTruth; 2]; 2],
    /// New records of interfaces that want translations ([`WANT_TRANSLATIONS`](super::WANT_TRANSLATIONS)) without a word about the
    /// other side: there was no way to say it. By whether the program had the CPU's caches to itself; no bytes.
    pub untold: [Count; 2],
}

/// Witness counters of one interface and epoch, of one CPU or of all: [`Hooked`] and [`Judged`] side by side, for the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Truth {
    /// As [`Hooked::hook`].
    pub hook: [HookTruth; 2],
    /// As [`Judged::verdict`].
    pub verdict: [[VerdictTruth; 2]; 2],
    /// As [`Judged::untold`].
    pub untold: [Count; 2],
}

/// Packets that foreign XDP programs took on one interface, and that are in the books of a window as ours: at the interface's id in the
/// `TAKEN` array, for each CPU. Only added to, whatever the epoch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Dropped or aborted.
    pub dropped: u64,
    /// Sent back or redirected.
    pub forwarded: u64,
}

/// The frame that a foreign XDP program has on one CPU: written at its entry, read at its exit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traced {
    /// A pointer on its way to becoming a number: the verifier refuses arithmetic on it before.
    pub pointer: u64,
    /// Address of the frame's `xdp_buff`; 0: there is none, or nobody wants it.
    pub buffer: u64,
    /// What the parser found.
    pub found: u64,
    /// Spot of its interface.
    pub spot: u32,
    /// Explicit padding, always 0.
    pub spare: u32,
}

impl Truth {
    /// All counters: of the hooks, of refusals, of packets that died, of records without a word about translations. Journals have them in this order, and older ones fewer.
    pub fn counts(&self) -> impl Iterator<Item = Count> + '_ {
        let hooks = self.hook.iter().flat_map(|h| [h.seen, h.non_ip, h.malformed, h.lost]);
        let verdicts = || self.verdict.iter().flatten();
        let refused =
            verdicts().flat_map(|v| [v.refused, v.seen, v.lost, v.lost_counted, v.lost_twice, v.late, v.unknown]);
        let died = verdicts().flat_map(|v| [v.died, v.died_untold, v.died_late]);
        hooks.chain(refused).chain(died).chain(self.untold)
    }

    /// Adds to all counters, in the same order; those that there is nothing for stay.
    pub fn add(&mut self, counts: impl IntoIterator<Item = Count>) {
        let mut counts = counts.into_iter();
        let mut plus = |to: &mut Count| {
            let more = counts.next().unwrap_or_default();
            to.packets += more.packets;
            to.bytes += more.bytes;
        };
        for h in &mut self.hook {
            [&mut h.seen, &mut h.non_ip, &mut h.malformed, &mut h.lost].into_iter().for_each(&mut plus);
        }
        for v in self.verdict.iter_mut().flatten() {
            let lost = [&mut v.lost, &mut v.lost_counted, &mut v.lost_twice];
            let all = [&mut v.refused, &mut v.seen].into_iter().chain(lost).chain([&mut v.late, &mut v.unknown]);
            all.for_each(&mut plus);
        }
        for v in self.verdict.iter_mut().flatten() {
            [&mut v.died, &mut v.died_untold, &mut v.died_late].into_iter().for_each(&mut plus);
        }
        self.untold.iter_mut().for_each(&mut plus);
    }
}

const _: () = {
    assert!(size_of::<Taken>() == 16 && size_of::<Traced>() == 32);
    assert!(size_of::<Hooked>() == 2 * 64 && size_of::<Judged>() == 4 * 160 + 2 * 16);
};
