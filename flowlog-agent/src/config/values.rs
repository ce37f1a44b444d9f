//! Values that several tables of the configuration have, and those that the machine has where nothing is said.

use flowlog_model::{
    amount::{Secs, Written},
    rule::{InvalidField, window_secs},
};

use super::WINDOW_SECS_DEFAULT;

/// The length of a window; `field` is what says it.
///
/// # Errors
/// If no window can be so long.
pub(super) fn window(field: &'static str, written: Option<&Written<Secs>>) -> Result<u32, InvalidField> {
    let Some(Written { is: Secs(secs), text }) = written else { return Ok(WINDOW_SECS_DEFAULT) };
    // What is more than there are numbers is more than a day.
    let secs = u32::try_from(*secs).unwrap_or(u32::MAX);
    window_secs(secs).map_err(|InvalidField { rule, .. }| InvalidField::new(field, text, rule))
}

/// The host name, made key-safe.
pub(super) fn host_name() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    let safe: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' })
        .take(flowlog_model::rule::NAME_BYTES_MAX)
        .collect();
    if safe.chars().all(|c| c == '.') { "node".to_owned() } else { safe }
}
