//! Windows: which stretch of time a record belongs to, and what a window adds up to.
//!
//! * [`clock`]: when windows begin and end, whatever the wall clock does;
//! * [`table`]: merging records by flow;
//! * [`settle`]: verdicts against passed packets, and the proof that nothing is missing (promise P1).
//!
//! Pure: no I/O, no clock; time is an argument.

pub mod clock;
pub mod settle;
pub mod table;

pub use clock::{Span, WindowClock};
pub use settle::{Balance, Loss, LossReason, Settled};
pub use table::{Addresses, Flow, FlowTable, Totals};
