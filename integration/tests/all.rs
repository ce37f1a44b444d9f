//! Tests on the real kernel, named after the promise they check.
#![allow(clippy::disallowed_methods, reason = "tests and tools read clocks to measure and to wait")]
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

#[path = "all/accounting.rs"]
mod accounting;
#[path = "all/api.rs"]
mod api;
#[path = "all/balancers.rs"]
mod balancers;
#[path = "all/behind.rs"]
mod behind;
#[path = "all/changing.rs"]
mod changing;
#[path = "all/checked.rs"]
mod checked;
#[path = "all/cloud.rs"]
mod cloud;
#[path = "all/codes.rs"]
mod codes;
#[path = "all/completion.rs"]
mod completion;
#[path = "all/confined.rs"]
mod confined;
#[path = "all/connections.rs"]
mod connections;
#[path = "all/console.rs"]
mod console;
#[path = "all/documents.rs"]
mod documents;
#[path = "all/elsewhere.rs"]
mod elsewhere;
#[path = "all/first_flow_log.rs"]
mod first_flow_log;
#[path = "all/fleet.rs"]
mod fleet;
#[path = "all/foreign_xdp.rs"]
mod foreign_xdp;
#[path = "all/fragments.rs"]
mod fragments;
#[path = "all/handover.rs"]
mod handover;
#[path = "all/hooks.rs"]
mod hooks;
#[path = "all/hotplug.rs"]
mod hotplug;
#[path = "all/identity.rs"]
mod identity;
#[path = "all/input.rs"]
mod input;
#[path = "all/inventory.rs"]
mod inventory;
#[path = "all/libvirt.rs"]
mod libvirt;
#[path = "all/lights.rs"]
mod lights;
#[path = "all/limits.rs"]
mod limits;
#[path = "all/lines.rs"]
mod lines;
#[path = "all/links.rs"]
mod links;
#[path = "all/logs.rs"]
mod logs;
#[path = "all/lost.rs"]
mod lost;
#[path = "all/marks.rs"]
mod marks;
#[path = "all/metrics.rs"]
mod metrics;
#[path = "all/namespaces.rs"]
mod namespaces;
#[path = "all/nat.rs"]
mod nat;
#[path = "all/numbers.rs"]
mod numbers;
#[path = "all/objects.rs"]
mod objects;
#[path = "all/observe.rs"]
mod observe;
#[path = "all/order.rs"]
mod order;
#[path = "all/ovsdb.rs"]
mod ovsdb;
#[path = "all/packets.rs"]
mod packets;
#[path = "all/pins.rs"]
mod pins;
#[path = "all/powercut.rs"]
mod powercut;
#[path = "all/programs.rs"]
mod programs;
#[path = "all/queries.rs"]
mod queries;
#[path = "all/random.rs"]
mod random;
#[path = "all/readable.rs"]
mod readable;
#[path = "all/reading.rs"]
mod reading;
#[path = "all/region.rs"]
mod region;
#[path = "all/rehook.rs"]
mod rehook;
#[path = "all/reload.rs"]
mod reload;
#[path = "all/reuse.rs"]
mod reuse;
#[path = "all/rules.rs"]
mod rules;
#[path = "all/service.rs"]
mod service;
#[path = "all/shares.rs"]
mod shares;
#[path = "all/sizing.rs"]
mod sizing;
#[path = "all/sources.rs"]
mod sources;
#[path = "all/stacking.rs"]
mod stacking;
#[path = "all/status.rs"]
mod status;
#[path = "all/stores.rs"]
mod stores;
#[path = "all/tables.rs"]
mod tables;
#[path = "all/terminal.rs"]
mod terminal;
#[path = "all/trace.rs"]
mod trace;
#[path = "all/traced_xdp.rs"]
mod traced_xdp;
#[path = "all/translation.rs"]
mod translation;
#[path = "all/trouble.rs"]
mod trouble;
#[path = "all/trusted.rs"]
mod trusted;
#[path = "all/tunnels.rs"]
mod tunnels;
#[path = "all/verdicts.rs"]
mod verdicts;
#[path = "all/ways.rs"]
mod ways;
#[path = "all/windows.rs"]
mod windows;
#[path = "all/wrapped_xdp.rs"]
mod wrapped_xdp;
