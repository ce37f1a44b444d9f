//! What the programs have counted up to this moment, in windows that are closed and in those that are not.

use std::time::Duration;

use flowlog_ebpf::abi::{Count, Truth};
use flowlog_model::{
    Now,
    figures::{CaptureFigures, Traffic, Volume},
    rule::Direction,
};

use crate::{books::Books, error::CaptureError, source::Source};

/// Looks at every watched interface.
///
/// # Errors
/// If the kernel does not say what its programs count.
pub(super) fn look<S: Source>(books: &mut Books<S>, now: Now) -> Result<Vec<CaptureFigures>, CaptureError> {
    let Books { source, ledger, .. } = books;
    let mut all = Vec::new();
    for (id, w) in ledger.watched_mut() {
        let mut truth = w.counted;
        if let Some(epoch) = w.closing_epoch() {
            truth.add(source.truth(id, epoch)?.counts());
        }
        let open = source.truth(id, w.epoch)?;
        truth.add(open.counts());
        let mut in_window = Volume::default();
        for hook in open.hook {
            in_window.packets += hook.seen.packets;
            in_window.bytes += hook.seen.bytes;
        }
        let span = w.clock.current();
        let (opened_secs, end_secs) = (span.opened.wall.secs(), span.end_secs);
        let captured = Direction::BOTH.into_iter().filter(|direction| w.spec.captures(*direction));
        let told = &mut w.told;
        let traffic = captured.map(|direction| {
            let traffic = traffic(&truth, direction, &mut told[direction.index()]);
            (w.spec.side.owners(direction), traffic)
        });
        let traffic = traffic.collect();
        let overdue = Duration::from_secs(u64::try_from(now.wall.secs() - w.end_secs()).unwrap_or(0));
        let interface_id = w.spec.interface_id.clone();
        all.push(CaptureFigures { interface_id, traffic, overdue, in_window, opened_secs, end_secs });
    }
    Ok(all)
}

fn volume(Count { packets, bytes }: Count) -> Volume {
    Volume { packets, bytes }
}

fn traffic(truth: &Truth, direction: Direction, told: &mut Volume) -> Traffic {
    let hook = truth.hook[direction.index()];
    let mut rejected = Volume::default();
    let mut taken_back = Volume::default();
    let mut died = Volume::default();
    for v in &truth.verdict[direction.index()] {
        for (sum, more) in [(&mut rejected, v.refused), (&mut taken_back, v.seen), (&mut died, v.died)] {
            sum.packets += more.packets;
            sum.bytes += more.bytes;
        }
    }
    let rest = |of: fn(Volume) -> u64| {
        of(volume(hook.seen)).saturating_sub(of(volume(hook.non_ip))).saturating_sub(of(taken_back))
    };
    told.packets = told.packets.max(rest(|v| v.packets));
    told.bytes = told.bytes.max(rest(|v| v.bytes));
    Traffic { seen: volume(hook.seen), non_ip: volume(hook.non_ip), accepted: *told, rejected, died }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_packets_are_never_fewer_than_were_told() {
        let count = |packets| Count { packets, bytes: packets * 100 };
        let mut truth = Truth::default();
        let mut told = Volume::default();
        truth.hook[0].seen = count(10);
        truth.hook[0].non_ip = count(1);
        let accepted = |truth: &Truth, told: &mut Volume| traffic(truth, Direction::Ingress, told).accepted.packets;
        assert_eq!(accepted(&truth, &mut told), 9);
        // Two of them die at a firewall behind the hook.
        truth.verdict[0][1].refused = count(3);
        truth.verdict[0][1].seen = count(2);
        assert_eq!(accepted(&truth, &mut told), 9);
        truth.hook[0].seen = count(15);
        assert_eq!(accepted(&truth, &mut told), 12);
        let all = traffic(&truth, Direction::Ingress, &mut told);
        assert_eq!((all.rejected.packets, all.rejected.bytes), (3, 300));
        assert_eq!(traffic(&truth, Direction::Egress, &mut Volume::default()), Traffic::default());
    }
}
