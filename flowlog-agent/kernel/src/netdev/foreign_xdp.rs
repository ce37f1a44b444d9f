//! XDP programs of somebody else: on which interface, which, and what became of packets that only they have seen.

use std::io;

use aya::programs::loaded_programs;
use flowlog_model::{
    interface::Netns,
    xdp::{XdpMode, XdpProgram, XdpReading},
};

use super::{NetDevError, netns, rtnetlink, xdp_counters};

/// Our own programs' names begin with this.
const OWN: &str = "flowlog_";

/// Looks at an interface; `own` are ids of our own programs, which may not have names to us, and `wrapped` those of ours that runs a foreign
/// one, and of that one.
///
/// # Errors
/// If it is gone.
pub fn read(of: &Netns, index: u32, own: &[u32], wrapped: Option<(u32, u32)>) -> Result<XdpReading, NetDevError> {
    Ok(netns::enter(of, || look(index, own, wrapped)).flatten()?)
}

fn look(index: u32, own: &[u32], wrapped: Option<(u32, u32)>) -> io::Result<XdpReading> {
    let (name, mut attached) = rtnetlink::programs(index)?;
    if let Some((ours, theirs)) = wrapped {
        attached.iter_mut().filter(|(_, id)| *id == ours).for_each(|(_, id)| *id = theirs);
    }
    let programs = foreign(&attached, own);
    Ok(XdpReading { programs, counters: xdp_counters::counters(&name), ..XdpReading::default() })
}

/// Those that are somebody else's, with their names where they may be asked for.
pub(crate) fn foreign(attached: &[(XdpMode, u32)], own: &[u32]) -> Vec<XdpProgram> {
    let others = attached.iter().filter(|(_, id)| !own.contains(id));
    let named = others.map(|(mode, id)| XdpProgram { mode: *mode, id: *id, name: name(*id) });
    named.filter(|p| !p.name.as_ref().is_some_and(|n| n.starts_with(OWN))).collect()
}

/// The name of a program. Asking for programs of others takes `CAP_SYS_ADMIN`, which an agent mostly has given up.
pub(crate) fn name(id: u32) -> Option<String> {
    let mut known = loaded_programs().filter_map(Result::ok);
    let name = known.find(|p| p.id() == id)?.name_as_str()?.to_owned();
    (!name.is_empty()).then_some(name)
}
