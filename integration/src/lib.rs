//! Test equipment. Each piece is the real thing or a witness that flowlog does not own:
//!
//! * [`net`], a crate of its own: network namespaces, veth pairs, nftables and their counters;
//! * [`agent`]: the agent as a process of its own; [`tracing`]: `flowlog trace` as one;
//! * [`ring`]: records, straight from the programs;
//! * [`rows`]: what landed, read back from Parquet;
//! * [`traffic`]: byte-exact packets from raw sockets, and plain sockets;
//! * [`others`]: other people's TC and XDP programs on the same interface;
//! * [`mixed`]: one of them that does a bit of everything, and what is sent to it;
//! * [`driver`]: what a driver counts by itself;
//! * [`s3`]: a real S3 server;
//! * [`faulty`]: a bad way to it;
//! * [`node`]: a node whose capture outlives its agents, and [`oracle`], who knows every packet;
//! * [`managed`]: a node whose flow logs are managed through the API, and [`http`] to ask it;
//! * [`etcd`], and [`fleet`]: a region with its nodes; [`files`] of both, which change while they are read;
//! * [`sourced`]: the same with sources of the inventory, and flow logs by selection;
//! * [`stacks`]: routers, bridges and devices on devices; [`taps`] as virtual machines have them;
//! * [`sockets`] and [`cgroups`] that get in the way of verdicts;
//! * [`claims`]: what rows must say next to a witness;
//! * [`terminal`]: a program on a pseudo-terminal, and its screen;
//! * [`features`]: what the kernel under test lacks, and skipping a test for it;
//! * [`random`]: random networks with random rules and traffic, made from a seed;
//! * [`machine`]: an interpreter of eBPF programs, and [`touched`], the cache lines that flowlog's touch on it;
//! * [`golden`]: packets with the key and counts they must give.
//!
//! What a promise is and how it is checked belongs in `tests/`.
#![allow(clippy::disallowed_methods, reason = "tests and tools read clocks to measure and to wait")]
#![allow(clippy::missing_panics_doc, reason = "test equipment: a panic is a failed test")]

pub mod agent;
pub mod cgroups;
pub mod claims;
pub mod driver;
pub mod etcd;
pub mod faulty;
pub mod features;
pub mod files;
pub mod fleet;
pub mod golden;
pub mod http;
pub mod machine;
pub mod managed;
pub mod mixed;
pub mod node;
pub mod oracle;
pub mod others;
pub mod random;
pub mod ring;
pub mod rows;
pub mod s3;
pub mod sockets;
pub mod sourced;
pub mod stacks;
pub mod taps;
pub mod terminal;
pub mod touched;
pub mod tracing;
pub mod traffic;
pub mod visitor;

pub use flowlog_lab as net;
