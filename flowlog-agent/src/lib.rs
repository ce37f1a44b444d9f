//! The flowlog agent, in the order data takes through it:
//!
//! [`kernel`] (programs, maps, ring) -> [`window`] (merge per interface and window) -> [`encode`] (rows, Parquet)
//! -> [`spool`] (durable files) -> [`upload`] (object store).
//!
//! [`rule`] says what is wanted, [`config`] where that comes from, [`netdev`] what an interface is, [`agent`] wires
//! the stages together, [`cli`] is the command line. A stage never imports a later one. `window`, `encode` and `rule`
//! do no I/O and read no clock.
//!
//! Flow logs that customers manage: [`inventory`] (what is on this node) -> [`control`] (who may, what holds, the store)
//! -> [`api`] (the cloud's API).
#![deny(unsafe_code)] // allowed, with reasons, only in files of `kernel`

pub mod agent;
pub mod api;
pub mod cli;
pub mod config;
pub mod control;
pub mod disk;
pub mod encode;
pub mod fault;
pub mod inventory;
pub mod journal;
pub mod kernel;
pub mod lock;
pub mod netdev;
pub mod rule;
pub mod spool;
pub mod status;
pub mod types;
pub mod upload;
pub mod window;
