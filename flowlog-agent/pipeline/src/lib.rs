//! From the kernel's records to objects in a store, in the order data takes:
//!
//! [`capture`] (which interfaces are watched, and the [`books`] of what they count) -> [`window`] (merge per interface and window)
//! with [`journal`] (the write-ahead log) -> [`encoder`] and [`encode`] (rows, Parquet) -> [`spool`] (durable files) -> [`upload`]
//! (object store). [`live`] is a way out for whoever looks before a window ends. [`disk`] is what journal and spool know of a file system; [`reporter`] says how all of it is doing.
//!
//! The kernel is behind a port, [`source`]: the simulation runs everything else. `window` and `encode` do no I/O and read no clock.
#![forbid(unsafe_code)]

pub(crate) mod books;
pub mod capture;
pub mod disk;
pub mod encode;
pub mod encoder;
pub mod error;
pub mod journal;
pub mod live;
pub mod reporter;
#[cfg(test)]
mod simulation;
pub mod source;
pub mod spool;
pub mod upload;
pub mod window;
mod xdp;
