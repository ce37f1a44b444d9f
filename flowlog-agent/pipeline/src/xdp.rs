//! Looking at other people's XDP programs on watched interfaces, and saying once what has changed.

use flowlog_model::{
    IfaceId,
    xdp::{XdpMode, XdpProgram, words},
};

use crate::{
    source::Source,
    window::{Event, ledger::Watched},
};

/// The event of a look; `None` if there is nothing new.
pub(crate) fn look<S: Source>(source: &S, id: IfaceId, w: &Watched) -> Option<Event> {
    let Some(reading) = source.xdp(id, &w.spec) else {
        // It has gone, and its counters with it: of interest only if there were programs.
        return (!w.xdp.programs().is_empty()).then_some(Event::Xdp { id, reading: None });
    };
    if !w.xdp.is_news(&reading) {
        return None;
    }
    say(&w.spec.interface, w.xdp.programs(), &reading.programs);
    Some(Event::Xdp { id, reading: Some(Box::new(reading)) })
}

/// Says which programs are on an interface now, if they are others than before.
fn say(interface: &str, before: &[XdpProgram], now: &[XdpProgram]) {
    if before == now {
        return;
    }
    let was = words(before);
    let xdp = words(now);
    if now.is_empty() {
        tracing::info!(interface, was, "somebody else's XDP program is gone");
    } else if now.iter().all(|p| p.mode == XdpMode::Generic) {
        tracing::info!(
            interface,
            xdp,
            was,
            "somebody else's XDP program: what it drops is REJECT, what it forwards is in no row"
        );
    } else {
        tracing::warn!(
            interface,
            xdp,
            was,
            "somebody else's XDP program runs before every hook: what it drops and forwards is in no flow, only in SKIPDATA rows as far as the driver counts it"
        );
    }
}
