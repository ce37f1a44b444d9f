//! What the operating system is asked for directly, by every layer that needs it.
//!
//! * [`clock`]: what time it is;
//! * [`lock`]: one agent at a time;
//! * [`fault`]: places at which tests end the process.
//!
//! A layer of its own, since the kernel's side and the pipeline use the same locks and may not know each other. Anything that only
//! one layer asks for belongs there.
#![forbid(unsafe_code)]

pub mod clock;
pub mod fault;
pub mod lock;
