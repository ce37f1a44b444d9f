//! Flow logs as customers manage them, in the order of the data:
//!
//! [`inventory`] (what is on this node) -> [`flow_logs`] (who may, what holds, the store) -> [`api`] (the cloud's API);
//! [`console`] shows the same to people, and [`serve`] listens for both, with a [`certificate`]. [`metrics`]: figures for machines, on an address of their own.
//!
//! How packets are captured, and how objects reach their bucket, does not belong here: an order goes to the agent, and it answers.
#![forbid(unsafe_code)]

pub mod api;
pub mod certificate;
pub(crate) mod console;
pub(crate) mod database;
pub mod etcd;
pub mod fleet;
pub mod flow_logs;
pub mod inventory;
pub mod live;
pub mod metrics;
pub mod serve;

/// An error in a TOML file, on one line.
#[must_use]
pub fn toml_error(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map(|s| text[..s.start.min(text.len())].matches('\n').count() + 1);
    let at = line.map(|l| format!("line {l}: ")).unwrap_or_default();
    format!("{at}{}", error.message().split_whitespace().collect::<Vec<_>>().join(" "))
}
