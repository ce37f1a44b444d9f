//! The text form of Prometheus before `OpenMetrics`: what collectors of text files read, and whoever does not say that they take the other one.
//!
//! Samples are the same in both. Here a family is called as its samples are, so that of counters ends with `_total`; and there is no end.

use std::{collections::BTreeSet, fmt::Write as _};

/// Of the form.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// What whoever takes the other form names in `Accept`.
const OTHER: &str = "application/openmetrics-text";

/// Whether somebody who accepts these takes `OpenMetrics` (RFC 9110, 12.5.1).
pub(super) fn takes_openmetrics(accept: &str) -> bool {
    let is_meant = |range: &str| {
        let mut parts = range.split(';').map(str::trim);
        let is_named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(OTHER));
        let quality = parts.find_map(|p| p.strip_prefix("q=")).map_or(Ok(1.0), str::parse::<f32>);
        is_named && quality.is_ok_and(|q| q > 0.0)
    };
    accept.split(',').any(is_meant)
}

/// The same figures, from `OpenMetrics`.
pub(super) fn of_openmetrics(text: &str) -> String {
    let typed = |line: &str| line.strip_prefix("# TYPE ")?.strip_suffix(" counter").map(str::to_owned);
    let counters: BTreeSet<String> = text.lines().filter_map(typed).collect();
    let mut out = String::with_capacity(text.len() + 8 * counters.len());
    for line in text.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        let described = ["# HELP ", "# TYPE "].into_iter().find_map(|what| Some((what, line.strip_prefix(what)?)));
        let named = described.and_then(|(what, rest)| Some((what, rest.split_once(' ')?)));
        // Writing to a String cannot fail.
        let _ = match named.filter(|(_, (name, _))| counters.contains(*name)) {
            Some((what, (name, rest))) => writeln!(out, "{what}{name}_total {rest}"),
            None => writeln!(out, "{line}"),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_called_as_their_samples_are() {
        let other = "# HELP a Of counters.\n# TYPE a counter\na_total{x=\"# TYPE a counter\"} 1\n# HELP b Of b.\n# TYPE b gauge\n\
                     # UNIT b bytes\nb 2.0\n# EOF\n";
        let classic = "# HELP a_total Of counters.\n# TYPE a_total counter\na_total{x=\"# TYPE a counter\"} 1\n# HELP b Of b.\n\
                       # TYPE b gauge\nb 2.0\n";
        assert_eq!(of_openmetrics(other), classic);
    }

    #[test]
    fn the_newer_form_is_for_those_who_say_that_they_take_it() {
        // What Prometheus 2.53 sends.
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                          text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        for (accept, takes) in [
            (prometheus, true),
            ("application/openmetrics-text", true),
            ("application/openmetrics-text; version=1.0.0; q=0", false),
            ("text/plain;version=0.0.4", false),
            ("*/*", false),
            ("", false),
        ] {
            assert_eq!(takes_openmetrics(accept), takes, "{accept}");
        }
    }
}
