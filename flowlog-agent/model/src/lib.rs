//! What everything is about: pure data and the rules it keeps. No I/O, no clock.
//!
//! * [`rule`]: what a customer asks for;
//! * [`interface`]: network interfaces, and which one is meant;
//! * [`capture`]: a rule on an interface, asked for and watched;
//! * [`xdp`]: other people's XDP programs; [`hiding`]: what else may keep packets from hooks;
//! * [`labels`]: what a resource is known by besides its id;
//! * [`translation`]: packets' addresses and ports, as connection tracking knows them;
//! * [`live`]: flows as they are seen, and which are asked for;
//! * [`sweep`]: emptying the kernel's caches;
//! * [`status`]: what there is to say about all of it; [`figures`]: the same as numbers of this moment;
//! * [`s3`]: how buckets are reached;
//! * [`text`]: others' words, fit to be seen; [`amount`]: numbers and times, as people read and write them;
//! * [`ids`], [`time`]: numbers that must not be mixed up.
//!
//! What any of it costs, and how it is carried out, does not belong here.
#![forbid(unsafe_code)]
#![warn(missing_docs)] // every other crate reads these

pub mod amount;
pub mod capture;
pub mod figures;
pub mod hiding;
pub mod ids;
pub mod interface;
pub mod labels;
pub mod live;
pub mod rule;
pub(crate) mod s3;
pub mod status;
pub mod sweep;
pub mod text;
pub(crate) mod time;
pub mod translation;
pub mod xdp;

pub use capture::{CaptureSpec, HookKind, WatchSpec};
pub use ids::{Epoch, FlowLogId, IfaceId};
pub use labels::Labels;
pub use s3::S3Options;
pub use time::{MonoNs, NS_PER_SEC, Now, WallNs};
