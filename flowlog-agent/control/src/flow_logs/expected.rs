//! Which version of a flow log somebody means to change: two who change it at the same time do not undo each other's work.

use super::{Refused, flow_log::FlowLog};

/// As in the header `If-Match` (RFC 9110, section 13.1.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Whichever version there is.
    #[default]
    Any,
    /// The version that has one of these etags.
    OneOf(Vec<String>),
}

impl Expected {
    /// From the header's values. A tag may come without its quotes, as `metadata.etag` has it; one that is weak is never the same.
    #[must_use]
    pub(crate) fn of<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let tags: Vec<String> =
            values.flat_map(|v| v.split(',')).map(|tag| tag.trim().trim_matches('"').to_owned()).collect();
        if tags.is_empty() || tags.iter().any(|tag| tag == "*") { Self::Any } else { Self::OneOf(tags) }
    }

    /// Refuses another version.
    ///
    /// # Errors
    /// [`Refused::Stale`].
    pub(crate) fn holds(&self, flow_log: &FlowLog) -> Result<(), Refused> {
        let now = flow_log.etag();
        match self {
            Self::OneOf(tags) if !tags.contains(&now) => Err(Refused::Stale(format!(
                "flow log {} has changed: its etag is `{now}` now; look again",
                flow_log.id
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow_logs::flow_log::tests::sample;

    #[test]
    fn only_a_version_that_was_seen_is_changed() {
        let now = sample().etag();
        let holds = |header: &[&str]| Expected::of(header.iter().copied()).holds(&sample()).is_ok();
        let quoted = format!("\"{now}\"");
        assert!(holds(&[]) && holds(&["*"]) && holds(&[&quoted]) && holds(&[&now]));
        assert!(holds(&["\"a\"", &quoted]) && holds(&[&format!("\"a\", {quoted}")]));
        assert!(!holds(&["\"a\""]) && !holds(&[&format!("W/{quoted}")]) && !holds(&[""]));
        assert!(Expected::OneOf(vec![now]).holds(&FlowLog { version: 2, ..sample() }).is_err());
    }
}
