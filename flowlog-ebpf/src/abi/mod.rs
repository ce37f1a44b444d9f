//! The kernel/user ABI: every struct that crosses the boundary; the size of each that both sides read is pinned by an assertion beside it.
//!
//! A change to any layout or to the meaning of a field must raise [`ABI_VERSION`]; the assertions remind whoever changes a
//! layout.

mod iface;
mod layout;
mod note;
mod offsets;
mod record;
mod truth;

pub use iface::*;
pub use layout::*;
pub use note::*;
pub use offsets::*;
pub use record::*;
pub use truth::*;

/// Version of everything in this module. It names the pin directory, so that two ABIs never share a map.
pub const ABI_VERSION: u32 = 15;

/// Ingress: the packet enters the interface that is being watched.
pub const INGRESS: u8 = 0;
/// Egress: the packet leaves through the interface that is being watched.
pub const EGRESS: u8 = 1;

/// Epochs whose truth counters exist side by side: current, closing, and two of slack for a slow agent.
pub const EPOCHS: u32 = 4;
