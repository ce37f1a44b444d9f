//! What the kernel half and the user half of flowlog share.
//!
//! * [`abi`]: the byte layouts that cross the kernel/user boundary, and the numbers both sides must agree on.
//! * [`packet`]: the one packet parser. The eBPF programs, the unit tests, the golden packet table and the
//!   fuzz target all run this code; only the way bytes are fetched ([`packet::Bytes`]) differs.
//! * [`hash`]: which cache slot a flow lives in;
//! * [`refusal`]: how a refused packet is counted;
//! * [`expression`]: which packets are meant, for the tracer; [`sighting`]: what its programs tell of one;
//! * [`bench`]: what the benchmark and its own programs agree on.
//!
//! This crate does not belong to the agent's logic: nothing here allocates, reads a clock or does I/O.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)] // both halves read these
#![allow(
    clippy::inline_always,
    reason = "a BPF call costs a stack frame of 512 bytes in all, and the verifier follows it each time"
)]
#![allow(clippy::cast_possible_truncation, reason = "header offsets end at OFFSET_MAX")]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod bench;
pub mod expression;
pub mod hash;
pub mod packet;
pub mod refusal;
pub mod sighting;
