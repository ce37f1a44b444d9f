//! Flow logs of a fleet: one etcd has them, servers without a kernel change them, and each node carries out what concerns its own
//! resources, wherever those are now.
//!
//! ```text
//!   flowlog control (several)                etcd                            flowlog run (each node)
//!   API, console, checks  -- change, CAS --> rules/flow-logs -- one watch -> mirror (disk) -> own flow logs -> order to the agent
//!   one carries requests out                        ^-------- PROVISIONING -> ACTIVE, DELETING -> gone, CAS ------------+
//!   inventory, states  <-------- watch ----- nodes/ID/resources, nodes/ID/status (with a lease) <---- publisher --------+
//! ```
//!
//! * [`node`]: the node's side; [`mirror`]: what it knows, on its disk; [`publisher`], [`said`]: what it says of itself;
//! * [`claim`]: one process has a name at a time, a node's id or a server's;
//! * [`region`]: the server's side; [`merged`]: one inventory and one status, of what all nodes say; [`leader`]: which server carries
//!   requests out;
//! * [`rehearsal`]: nodes that only watch, for measuring.
//!
//! Who may do what, and what is checked, is the same as on one node ([`crate::flow_logs`]).

mod claim;
mod leader;
mod merged;
mod mirror;
pub mod node;
mod publisher;
pub mod region;
pub mod rehearsal;
mod said;
