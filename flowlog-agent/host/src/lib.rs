//! What several layers ask the operating system for.
//!
//! * [`clock`]: what time it is;
//! * [`lock`]: one agent at a time;
//! * [`trust`]: files that others may not read, or not write;
//! * [`fault`]: places at which tests end the process.
//!
//! It is a layer of its own because the kernel's side, the pipeline and the control plane share these and may not know each other, and
//! the model does no I/O and reads no clock. What only one layer asks for belongs in that layer.
#![forbid(unsafe_code)]

pub mod clock;
pub mod fault;
pub mod lock;
pub mod trust;
