//! etcd, as far as flowlog uses it: a connection, a feed of what changes below a prefix, and the names of keys.
//!
//! ```text
//! PREFIX/rules/flow-logs/PARENT/ID   a flow log (JSON); PARENT is its NIC, gateway or balancer
//! PREFIX/rules/requests/ID           a request (JSON)
//! PREFIX/rules/contracts/CONTRACT    the last change that was planned from all of a contract
//! PREFIX/rules/writers/WRITER        the last transaction of somebody who writes: settles what became of one
//! PREFIX/nodes/NODE/resources        what a node has (JSON, deflated); stays when the node goes
//! PREFIX/nodes/NODE/status           how it is doing (JSON, deflated); goes with its lease
//! PREFIX/servers/SERVER              the server of that name (JSON); goes with its lease
//! PREFIX/leader                      the server that carries requests out; goes with its lease
//! PREFIX/audit/CONTRACT/TIME-…       the audit log
//! ```
//!
//! * [`options`]: where etcd is, and how it is reached;
//! * [`connection`]: a client that is made again where that helps, and errors in words;
//! * [`feed`]: all of a prefix, then every change, whatever happens to connection, compaction and history in between;
//! * [`keys`]: the names above; `named`: whether that of this process is its own.
//!
//! What is in the values does not belong here ([`crate::flow_logs`], [`crate::fleet`]).

pub(crate) mod connection;
pub(crate) mod feed;
pub(crate) mod keys;
mod named;
mod options;
#[cfg(test)]
pub(crate) mod server;

pub use connection::EtcdHealth;
pub use named::Named;
pub use options::{EtcdOptions, PREFIX_DEFAULT};
