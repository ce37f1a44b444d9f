//! The four fields of a flow log, with what is wrong with each beside it.

use flowlog_model::rule::InvalidField;
use maud::{Markup, html};

use super::{
    Visitor,
    door::Filled,
    frame,
    words::{said, seen},
};
use crate::flow_logs::flow_log::Properties;

/// Words of the API for directions and actions, the usual one first.
const DIRECTIONS: [&str; 3] = ["BIDIRECTIONAL", "INGRESS", "EGRESS"];
const ACTIONS: [&str; 3] = ["ALL", "ACCEPTED", "REJECTED"];

/// What somebody has filled in.
#[must_use]
pub(super) fn properties(filled: &Filled) -> Properties {
    let trimmed = |name| filled.one(name).trim().to_owned();
    Properties {
        name: trimmed("name"),
        direction: trimmed("direction"),
        action: trimmed("action"),
        bucket: trimmed("bucket"),
    }
}

/// Where a form goes, and what it is for.
pub(super) struct Form<'a> {
    pub action: String,
    /// What ids of its fields begin with: a page may have several forms.
    pub ids: String,
    pub button: &'a str,
    pub values: &'a Properties,
    pub problems: &'a [InvalidField],
    /// The version that is changed.
    pub version: Option<String>,
}

/// Fields as the form has them, and what each is for.
fn field_of(problem: &InvalidField) -> &str {
    // The prefix is the second half of the target.
    if problem.field == "prefix" { "bucket" } else { &problem.field }
}

impl Form<'_> {
    #[must_use]
    pub(super) fn drawn(&self, visitor: &Visitor) -> Markup {
        let Properties { name, direction, action, bucket } = self.values;
        let elsewhere = self.problems.iter().filter(|p| !Properties::FIELDS.contains(&field_of(p)));
        html! {
            form.fields method="post" action=(self.action) novalidate {
                (frame::token(visitor))
                @if let Some(version) = &self.version { input type="hidden" name="version" value=(version); }
                @for problem in elsewhere {
                    p.problem { strong { (problem.field) } ": " (seen(&problem.value)) " " (seen(&problem.rule)) }
                }
                (self.field("name", "Name", &html! {
                    input id=(self.id("name")) name="name" value=(name) maxlength="63" autocomplete="off" spellcheck="false"
                        aria-describedby=(self.id("name-help")) aria-invalid=[self.is_wrong("name")];
                }, "1 to 63 letters, digits, dots, underscores, hyphens. Object keys begin with it."))
                (self.field("direction", "Direction", &self.choice("direction", &DIRECTIONS, direction),
                    "As the owner of the interface sees it."))
                (self.field("action", "Action", &self.choice("action", &ACTIONS, action), "Which packets are recorded."))
                (self.field("bucket", "Target S3 bucket", &html! {
                    input id=(self.id("bucket")) name="bucket" value=(bucket) maxlength="127" autocomplete="off" spellcheck="false"
                        aria-describedby=(self.id("bucket-help")) aria-invalid=[self.is_wrong("bucket")];
                }, "bucket, or bucket/prefix. It must be your contract's."))
                button.primary type="submit" { (self.button) }
            }
        }
    }

    fn id(&self, name: &str) -> String {
        format!("{}-{name}", self.ids)
    }

    fn is_wrong(&self, field: &str) -> Option<&'static str> {
        self.problems.iter().any(|p| field_of(p) == field).then_some("true")
    }

    fn field(&self, name: &str, label: &str, input: &Markup, help: &str) -> Markup {
        let problems = self.problems.iter().filter(|p| field_of(p) == name);
        html! {
            div.field.wrong[self.is_wrong(name).is_some()] {
                label for=(self.id(name)) { (label) }
                (input)
                div.help id=(self.id(&format!("{name}-help"))) {
                    @for problem in problems { p.problem { (seen(&problem.rule)) } }
                    p.quiet { (help) }
                }
            }
        }
    }

    fn choice(&self, name: &str, words: &[&str], chosen: &str) -> Markup {
        // A draft may have been written with another word: it stays visible as what is wrong.
        let is_strange = !chosen.is_empty() && !words.contains(&chosen);
        html! {
            select id=(self.id(name)) name=(name) aria-describedby=(self.id(&format!("{name}-help"))) aria-invalid=[self.is_wrong(name)] {
                @if is_strange { option value=(chosen) selected { (seen(chosen)) } }
                @for word in words { option value=(word) selected[*word == chosen] { (said(word)) } }
            }
        }
    }
}
