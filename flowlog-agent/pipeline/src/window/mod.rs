//! Windows: which stretch of time a record belongs to, and what a window adds up to.
//!
//! * [`block`]: records as they come from the kernel;
//! * [`balance`]: the books of a window, and its losses;
//! * [`clock`]: when windows begin and end, whatever the wall clock does;
//! * [`table`]: merging records by flow;
//! * [`connection`]: what a flow shows of its connection;
//! * [`info`]: what is known about a window besides its flows;
//! * [`ledger`]: all of it together, as a function of the events so far;
//! * [`xdp`]: what other people's XDP programs did in a window;
//! * [`settle`]: takes refused packets out of the accepted ones, and checks that nothing is missing (promise P1).
//!
//! Pure: no I/O, no clock; time is an argument.

pub(crate) mod balance;
pub mod block;
pub(crate) mod clock;
pub(crate) mod connection;
pub(crate) mod info;
pub(crate) mod ledger;
#[cfg(test)]
mod property;
pub mod settle;
pub(crate) mod table;
pub mod xdp;

pub use balance::{Balance, Loss, LossReason, NoCount, WrittenBooks, names as balance_names};
pub use clock::{Span, WindowClock};
pub use connection::Connection;
pub use info::{Foreign, ObjectInfo};
pub use ledger::{Closed, Event, Ledger, Part};
pub use settle::Settled;
pub use table::{Addresses, Flow, FlowTable, Handshake, KEPT_MAX, Lost, OtherSide, Totals, Untold};
pub(crate) use table::{ipv4, ipv6};
pub use xdp::XdpWindow;
