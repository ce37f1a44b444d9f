//! Random networks: a host with ports, bridges, macvlans, VLANs and address translation, a random rule set on it, and
//! random traffic through it, all made from one seed. The witnesses are a named nftables counter in each refusing rule
//! and the senders' own lists; [`expect`] says what follows from them for each interface, [`judge`] compares.
//!
//! ```text
//! seed -> prng -> topology, flows (and rules), noise -> scenario: build, send -> expect -> judge
//! ```

pub mod build;
pub mod expect;
pub mod features;
pub mod flows;
pub mod judge;
pub mod knobs;
pub mod noise;
pub mod path;
pub mod prng;
pub mod rules;
pub mod scenario;
pub mod send;
pub mod topology;
