//! The command: it reads the configuration, starts, wires the layers together, and ends.
//!
//! [`config`] says what is wanted, [`agent`] starts it and runs the main loop, [`cli`] is the command line, [`log`] what is said meanwhile. What a layer does by itself
//! does not belong here.
#![forbid(unsafe_code)]
#![warn(clippy::print_stdout, clippy::print_stderr)] // `cli/out.rs` prints, and panics at nothing

pub(crate) mod agent;
pub mod cli;
pub(crate) mod config;
pub(crate) mod log;
